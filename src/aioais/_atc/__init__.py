"""Model conversion with ATC's options: to an ONNX file with gears, or to a ``.om`` through ``atc``."""
