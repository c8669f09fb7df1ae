"""A program on the module below: tensors that are moved by hand, a state that stays on the device."""

import aclruntime
import numpy as np

device_id = 0
options = aclruntime.session_options()
options.log_level = 2
session = aclruntime.InferenceSession("add_bs1.om", device_id, options)

for i, info in enumerate(session.get_inputs()):
    print(f"input {i}: {info.name} {info.shape} {info.datatype} {int(info.datatype)} {info.realsize} {info.size}")
print(session)

barray = bytearray(session.get_inputs()[0].realsize)
zeros = aclruntime.Tensor(np.frombuffer(barray))
zeros.to_device(device_id)
ones = aclruntime.Tensor(np.ones((1, 3, 32, 32), np.float32))
ones.to_device(device_id)

names = [meta.name for meta in session.get_outputs()]
state = zeros
for _ in range(10):
    (state,) = session.run(names, [state, ones])
state.to_host()
result = np.array(state)

by_name = session.run(names, {"input2": ones, "input1": zeros})
for tensor in by_name:
    tensor.to_host()
named = np.array(by_name[0])
nothing = session.run([], [zeros, ones])
times = session.sumary().exec_time_list

gears = aclruntime.InferenceSession("add_dymbatch.om", device_id, aclruntime.session_options())
gears.set_dynamic_batchsize(4)
size = gears.get_inputs()[0].realsize
flat = aclruntime.Tensor(np.frombuffer(bytearray(size), np.uint8))
flat.to_device(device_id)
(batch,) = gears.run(["output"], [flat, flat])
batch.to_host()
batch = np.array(batch)

errors = []
for call in (
    lambda: session.run(None, [zeros, ones]),
    lambda: session.run(names, {"input1": np.zeros(3), "input2": ones}),
):
    try:
        call()
    except TypeError as e:
        errors.append(e)
for call in (
    lambda: session.run(["nothing"], [zeros, ones]),
    lambda: aclruntime.Tensor(np.zeros(3)).to_device(100),
    lambda: session.run(names, [zeros]),
    lambda: gears.set_dynamic_batchsize(3),
):
    try:
        call()
    except RuntimeError as e:
        errors.append(e)

session.free_resource()
gears.free_resource()
