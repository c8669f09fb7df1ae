"""A script that goes on after the errors that ais_bench raises."""

import numpy as np
from ais_bench.infer.interface import InferSession, MultiDeviceSession

result = {}


def attempt(name, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except RuntimeError as e:
        result[name] = str(e)
    else:
        result[name] = None


attempt("no such file", InferSession, 0, "nothing.om")
attempt("no such device", InferSession, 99, "add_bs1.om")

session = InferSession(0, "add_bs1.om")
good = np.zeros((1, 3, 32, 32), np.float32)
attempt("too few feeds", session.infer, [good])
attempt("too many feeds", session.infer, [good, good, good])
attempt("wrong size", session.infer, [good, good[:, :2]])
attempt("a list for an array", session.infer, [good, [1, 2]])
attempt("unknown mode", session.infer, [good, good], "dymnothing")
attempt("mode of another model", session.infer, [good, good], "dymbatch")
attempt("a bad item", session.infer_pipeline, [[good, good], [good, good[:, :1]]])
attempt("wrong length", session.infer_iteration, [good, good], [-1], 3)
attempt("output out of range", session.infer_iteration, [good, good], [-1, 7], 3)
attempt("not a gear", session.set_dynamic_batchsize, 3)
outputs = session.infer([good, good + 1])
session.free_resource()
session.free_resource()
attempt("after free_resource", session.infer, [good, good])

shapes = InferSession(0, "add_dymshape.om")
attempt("custom_sizes", shapes.infer, [good, good], "dymshape", custom_sizes="large")
shapes.free_resource()

multi = MultiDeviceSession("add_bs1.om")
attempt("multi", multi.infer, {0: [[good, good], [good]]})
