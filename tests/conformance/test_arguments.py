"""Arguments: what pyACL's format characters accept, wrap and reject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_k_rejects_numpy_integers(ready: Any) -> None:
    with pytest.raises(TypeError, match=r"^acl\.rt\.malloc args parse failed$"):
        ready.rt.malloc(np.int64(64), 2)


@pytest.mark.parametrize("value", [1.0, None, "1", b"1"])
def test_k_rejects_what_is_no_int(ready: Any, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^acl\.rt\.free args parse failed$"):
        ready.rt.free(value)


def test_k_accepts_bool_and_wraps_negatives(ready: Any) -> None:
    assert ready.get_data_buffer_size_v2(ready.create_data_buffer(0, True)) == 1
    assert ready.get_data_buffer_size_v2(ready.create_data_buffer(0, -1)) == 2**64 - 1
    assert ready.get_data_buffer_size_v2(ready.create_data_buffer(0, 2**64 + 5)) == 5


def test_i_accepts_index_objects_and_rejects_overflow(ready: Any) -> None:
    assert ready.rt.set_device(np.int64(0)) == 0
    with pytest.raises(TypeError, match="args parse failed"):
        ready.rt.set_device(2**31)
    with pytest.raises(TypeError, match="args parse failed"):
        ready.rt.set_device(0.0)


def test_capital_i_accepts_index_objects_and_wraps(ready: Any) -> None:
    assert ready.mdl.unload(np.uint32(7)) == 145003
    assert ready.mdl.unload(-1) == 145003


@pytest.mark.parametrize("path", [b"x", Path("x"), None, "a\0b", "a\udc80"])
def test_s_accepts_only_clean_str(ready: Any, path: Any) -> None:
    with pytest.raises(TypeError, match=r"^acl\.mdl\.load_from_file args parse failed$"):
        ready.mdl.load_from_file(path)


def test_keywords_are_refused(ready: Any) -> None:
    with pytest.raises(TypeError):
        ready.rt.malloc(size=1, policy=0)


@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
def test_wrong_number_of_arguments(ready: Any, args: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=r"^acl\.rt\.malloc args parse failed$"):
        ready.rt.malloc(*args)


def test_surplus_arguments_are_ignored_where_none_are_taken(ready: Any) -> None:
    assert ready.rt.get_device_count(1, 2)[1] == 0


def test_init_refuses_none(acl: Any) -> None:
    with pytest.raises(TypeError, match=r"^acl\.init args parse failed$"):
        acl.init(None)


def test_tensor_desc_dims_are_a_list_of_real_ints(acl: Any) -> None:
    with pytest.raises(TypeError, match="argument 2 is not list"):
        acl.create_tensor_desc(0, (1, 2), 2)
    with pytest.raises(TypeError, match="invalid data type"):
        acl.create_tensor_desc(0, [np.int64(1)], 2)
    with pytest.raises(ValueError, match="PyLong_AsLongLong failed"):
        acl.create_tensor_desc(0, [2**63], 2)


@pytest.mark.parametrize(
    ("dims", "error"),
    [
        ({"dims": [1]}, ValueError),
        ({"dimCount": -1, "dims": [1]}, ValueError),
        ({"dimCount": np.int64(1), "dims": [1]}, ValueError),
        ({"dimCount": 2, "dims": [1]}, TypeError),
        ({"dimCount": 1, "dims": (1,)}, TypeError),
        ({"dimCount": 1, "dims": [1], "name": None}, RuntimeError),
    ],
)
def test_dynamic_dims_dictionary_errors(ready: Any, dims: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ready.mdl.set_input_dynamic_dims(1, 1, 0, dims)


def test_callback_must_be_callable(ready: Any) -> None:
    with pytest.raises(TypeError, match="parameter must be callable"):
        ready.rt.launch_callback(1, 2, 0, 0)


def test_return_codes_are_plain_ints(ready: Any) -> None:
    assert type(ready.rt.free(0)) is int
    assert type(ready.rt.malloc(0, 0)[1]) is int


def test_the_module_defines_no_constants(acl: Any) -> None:
    public = [getattr(acl, name) for name in dir(acl) if not name.startswith("_")]
    assert not [value for value in public if isinstance(value, (int, str, float))]


def test_bytes_to_ptr_takes_only_bytes(acl: Any) -> None:
    with pytest.raises(ValueError, match="needs an byte as argument"):
        acl.util.bytes_to_ptr(bytearray(3))
    text = b"0123456789"
    assert acl.util.ptr_to_bytes(acl.util.bytes_to_ptr(text), 10) == text


@pytest.mark.filterwarnings("ignore")
def test_ptr_to_numpy_wants_a_tuple_and_gives_a_writable_view(acl: Any) -> None:
    array = np.arange(6, dtype=np.float32)
    pointer, same = acl.util.numpy_contiguous_to_ptr(array)
    with pytest.raises(ValueError, match="shape is empty"):
        acl.util.ptr_to_numpy(pointer, [2, 3], 11)
    with pytest.raises(TypeError):
        acl.util.ptr_to_numpy(pointer, (np.int64(2), 3), 11)
    view = acl.util.ptr_to_numpy(pointer, (2, 3), 11)
    view[1, 2] = 9
    assert same is array
    assert array[5] == 9


@pytest.mark.filterwarnings("always")
def test_numpy_functions_warn_at_every_call(acl: Any) -> None:
    array = np.zeros(2)
    with pytest.warns(Warning, match="deprecated"):
        assert acl.util.numpy_to_ptr(array) == array.ctypes.data


def test_data_type_sizes(acl: Any) -> None:
    sizes = {0: 4, 1: 2, 2: 1, 3: 4, 9: 8, 11: 8, 12: 1, 13: 0, 17: 16, 27: 2, 29: 1, 5: 0, 38: 8, -1: 0}
    assert {dtype: acl.data_type_size(dtype) for dtype in sizes} == sizes


def test_float16_conversions_are_not_ieee_at_the_edges(acl: Any) -> None:
    assert acl.float16_to_float(0x3C00) == 1.0
    assert acl.float16_to_float(0x7C00) == 65536.0
    assert acl.float16_to_float(0x7E00) == 98304.0
    assert acl.float_to_float16(1.0) == 0x3C00
    assert acl.float_to_float16(float("inf")) == 0x7BFF
