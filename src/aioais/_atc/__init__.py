"""Model conversion with ATC's options: gears into an ONNX file, or the real ``atc``."""
