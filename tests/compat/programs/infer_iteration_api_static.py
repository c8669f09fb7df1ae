import numpy as np
from ais_bench.infer.interface import InferSession

model_path = "add_bs1.om"


def infer_iteration_api_static():
    session = InferSession(device_id=0, model_path=model_path)
    shape = session.get_inputs()[0].shape
    ndata0 = np.full(shape, 0).astype(np.float32)
    ndata1 = np.full(shape, 1).astype(np.float32)
    # the second input is the output of the step before
    outputs = session.infer_iteration(
        [ndata1, ndata0],
        in_out_list=[-1, 0],
        iteration_times=100,
        mode="static",
        mem_copy=True,
    )
    session.free_resource()
    return outputs


if __name__ == "__main__":
    result = infer_iteration_api_static()
