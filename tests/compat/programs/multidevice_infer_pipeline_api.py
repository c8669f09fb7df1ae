import numpy as np
from ais_bench.infer.interface import MultiDeviceSession

model_path = "add_bs1.om"


def multidevice_infer_pipeline_api():
    multi_session = MultiDeviceSession(model_path)
    ndata = np.full([1, 3, 32, 32], 1).astype(np.float32)
    feeds = [ndata, ndata]
    device_feeds = {0: [[feeds, feeds], [feeds, feeds]], 1: [[feeds]]}
    outputs = multi_session.infer_pipeline(device_feeds, mode="static")
    print(f"end to end: {multi_session.summary()} ms")
    return outputs


if __name__ == "__main__":
    result = multidevice_infer_pipeline_api()
