import numpy as np
from ais_bench.infer.interface import InferSession

model_path = "add_dymhw.om"


def infer_pipeline_api_dymhw():
    session = InferSession(0, model_path)
    shape = [1, 3, 64, 64]
    ndata = np.full(shape, 3).astype(np.float32)
    feeds_list = [[ndata, ndata], [ndata, ndata]]
    outputs = session.infer_pipeline(feeds_list, mode="dymhw")
    print(f"{len(outputs)} results, exec times: {session.summary().exec_time_list}")
    session.reset_summaryinfo()
    session.free_resource()
    return outputs


if __name__ == "__main__":
    result = infer_pipeline_api_dymhw()
