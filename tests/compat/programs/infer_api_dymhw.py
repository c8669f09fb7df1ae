import numpy as np
from ais_bench.infer.interface import InferSession

model_path = "add_dymhw.om"


def infer_api_dymhw():
    device_id = 0
    session = InferSession(device_id, model_path)
    # create new numpy data according inputs info
    shape = [1, 3, 64, 64]
    ndata0 = np.full(shape, 1).astype(np.float32)
    ndata1 = np.full(shape, 2).astype(np.float32)
    feeds = [ndata0, ndata1]
    outputs = session.infer(feeds, mode="dymhw")
    exec_time = session.summary().exec_time_list[-1]
    print(f"outputs: {outputs[0].shape}, exec time: {exec_time} ms")
    session.free_resource()
    return outputs


if __name__ == "__main__":
    result = infer_api_dymhw()
    InferSession.finalize()
