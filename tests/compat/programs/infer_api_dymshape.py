import numpy as np
from ais_bench.infer.interface import InferSession

model_path = "add_dymshape.om"


def infer_api_dymshape():
    device_id = 0
    session = InferSession(device_id, model_path)
    # create new numpy data according inputs info
    shape = [2, 3, 48, 48]
    ndata0 = np.full(shape, 1).astype(np.float32)
    ndata1 = np.full(shape, 2).astype(np.float32)
    feeds = [ndata0, ndata1]
    outputs = session.infer(feeds, mode="dymshape", custom_sizes=100000)
    exec_time = session.summary().exec_time_list[-1]
    print(f"outputs: {outputs[0].shape}, exec time: {exec_time} ms")
    session.free_resource()
    return outputs


if __name__ == "__main__":
    result = infer_api_dymshape()
    InferSession.finalize()
