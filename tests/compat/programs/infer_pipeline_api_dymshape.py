import numpy as np
from ais_bench.infer.interface import InferSession

model_path = "add_dymshape.om"


def infer_pipeline_api_dymshape():
    session = InferSession(0, model_path)
    feeds_list = []
    for shape in ([4, 3, 64, 64], [1, 3, 32, 32]):
        ndata = np.full(shape, 3).astype(np.float32)
        feeds_list.append([ndata, ndata])
    outputs = session.infer_pipeline(feeds_list, mode="dymshape", custom_sizes=[4 * 3 * 64 * 64 * 4])
    print(f"{len(outputs)} results, exec times: {session.summary().exec_time_list}")
    session.reset_summaryinfo()
    session.free_resource()
    return outputs


if __name__ == "__main__":
    result = infer_pipeline_api_dymshape()
