import numpy as np
from ais_bench.infer.interface import InferSession

model_path = "add_dymshape.om"


def infer_iteration_api_dymshape():
    session = InferSession(device_id=0, model_path=model_path)
    shape = [2, 3, 48, 48]
    ndata0 = np.full(shape, 0).astype(np.float32)
    ndata1 = np.full(shape, 1).astype(np.float32)
    # the second input is the output of the step before
    outputs = session.infer_iteration(
        [ndata1, ndata0],
        in_out_list=[-1, 0],
        iteration_times=100,
        mode="dymshape",
        custom_sizes=2 * 3 * 48 * 48 * 4,
        mem_copy=True,
    )
    session.free_resource()
    return outputs


if __name__ == "__main__":
    result = infer_iteration_api_dymshape()
