"""A detection backend, as large frameworks have one for each runtime."""

import threading

import numpy as np


class AscendBackend:
    NP_TYPES = {0: np.float32, 1: np.float16, 2: np.int8, 3: np.int32, 9: np.int64}

    def __init__(self, weight="conv_bs1.om", device="npu:0"):
        try:
            from ais_bench.infer.interface import InferSession
        except ImportError as e:
            raise ImportError("install ais_bench and aclruntime to run .om models") from e
        index = int(device.split(":")[1]) if ":" in device else 0
        self.session = InferSession(device_id=index, model_path=str(weight))
        self.inputs = self.session.get_inputs()
        self.output_names = [x.name for x in self.session.get_outputs()]
        self.imgsz = self.inputs[0].shape[2:]
        self.fp16 = "float16" in str(self.inputs[0].datatype)
        self.dtype = self.NP_TYPES[int(self.inputs[0].datatype)]
        self.lock = threading.Lock()

    def __call__(self, im):
        im = np.ascontiguousarray(im, dtype=self.dtype)
        with self.lock:
            y = self.session.infer([im])
        return y if len(y) > 1 else y[0]

    def warmup(self):
        self(np.zeros((1, 3, *self.imgsz), dtype=self.dtype))

    def __del__(self):
        if hasattr(self, "session"):
            self.session.free_resource()


if __name__ == "__main__":
    model = AscendBackend()
    model.warmup()
    frame = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
    image = (frame.transpose(2, 0, 1)[None] / 255.0).astype(np.float32)
    result = model(image)
    names = model.output_names
    del model
