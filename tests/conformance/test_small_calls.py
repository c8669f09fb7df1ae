"""Calls that the engine leaves alone and pyACL programs use: descriptions, AIPP, load options, bundles, conversions."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioais.emulator import EmulatorError

if TYPE_CHECKING:
    from tests.conformance.conftest import Models

INVALID = 100000
BOGUS = 0x7777


def call(acl: Any, name: str, *values: Any) -> Any:
    function = acl
    for part in name.split("."):
        function = getattr(function, part)
    return function(*values)


NULL: dict[str, tuple[tuple[Any, ...], Any]] = {
    # What a null handle gives: arguments, result.
    "get_tensor_desc_num_dims": ((0,), 0),
    "get_tensor_desc_dim_v2": ((0, 0), (0, INVALID)),
    "get_tensor_desc_dim": ((0, 0), -1),
    "get_tensor_desc_type": ((0,), -1),
    "get_tensor_desc_format": ((0,), -1),
    "get_tensor_desc_element_count": ((0,), 0),
    "get_tensor_desc_size": ((0,), 0),
    "get_tensor_desc_name": ((0,), ""),
    "get_tensor_desc_address": ((0,), 0),
    "get_tensor_desc_dim_range": ((0, 0, 2), (None, INVALID)),
    "set_tensor_desc_name": ((0, "x"), None),
    "set_tensor_shape": ((0, [1]), INVALID),
    "set_tensor_format": ((0, 2), INVALID),
    "set_tensor_origin_shape": ((0, [1]), INVALID),
    "destroy_tensor_desc": ((0,), None),
    "mdl.destroy_aipp": ((0,), INVALID),
    "mdl.set_aipp_input_format": ((0, 1), INVALID),
    "mdl.set_config_opt": ((0, 2, "x"), INVALID),
    "mdl.load_with_config": ((0,), (0, INVALID)),
    "mdl.destroy_config_handle": ((0,), INVALID),
    "rt.record_event": ((0, 0), INVALID),
    "rt.reset_event": ((0, 0), INVALID),
    "rt.stream_wait_event": ((0, 0), INVALID),
    "rt.synchronize_event": ((0,), INVALID),
    "rt.query_event": ((0,), (0, INVALID)),
    "rt.query_event_status": ((0,), (0, INVALID)),
    "rt.query_event_wait_status": ((0,), (0, INVALID)),
    "rt.event_elapsed_time": ((0, 0), (0.0, INVALID)),
    "rt.event_get_timestamp": ((0,), (0, INVALID)),
    "rt.destroy_event": ((0,), INVALID),
    "rt.free": ((0,), INVALID),
    "rt.free_host": ((0,), INVALID),
    "rt.mem_flush": ((0, 8), INVALID),
}


@pytest.mark.parametrize("name", NULL)
def test_a_null_handle_is_told(ready: Any, name: str) -> None:
    values, wanted = NULL[name]
    assert call(ready, name, *values) == wanted


@pytest.mark.parametrize("name", [name for name in NULL if name != "rt.stream_wait_event"])
def test_an_invented_handle_stops_the_program(ready: Any, name: str) -> None:
    """pyACL would follow it; the emulator says so."""
    values = (BOGUS, *NULL[name][0][1:])
    with pytest.raises(EmulatorError):
        call(ready, name, *values)


def test_a_tensor_description_tells_what_it_was_given(ready: Any) -> None:
    acl = ready
    desc = acl.create_tensor_desc(0, [2, 3, 4], 2)
    assert acl.get_tensor_desc_num_dims(desc) == 3
    assert [acl.get_tensor_desc_dim_v2(desc, k) for k in range(4)] == [(2, 0), (3, 0), (4, 0), (0, INVALID)]
    assert [acl.get_tensor_desc_dim(desc, k) for k in range(4)] == [2, 3, 4, -1]
    assert (acl.get_tensor_desc_type(desc), acl.get_tensor_desc_format(desc)) == (0, 2)
    assert (acl.get_tensor_desc_element_count(desc), acl.get_tensor_desc_size(desc)) == (24, 96)
    assert acl.get_tensor_desc_dim_range(desc, 1, 2) == ([3, 3], 0)
    assert acl.get_tensor_desc_dim_range(desc, 3, 2) == (None, INVALID)
    assert acl.set_tensor_shape_range(desc, [[1, 2], [3, 9], [4, 4]]) == 0
    assert acl.get_tensor_desc_dim_range(desc, 1, 2) == ([3, 9], 0)
    acl.set_tensor_desc_name(desc, "x")
    assert acl.get_tensor_desc_name(desc) == "x"
    assert acl.get_tensor_desc_address(desc) == 0
    assert (acl.set_tensor_shape(desc, [5, -1]), acl.set_tensor_format(desc, 0)) == (0, 0)
    assert (acl.get_tensor_desc_num_dims(desc), acl.get_tensor_desc_format(desc)) == (2, 0)
    assert acl.get_tensor_desc_size(desc) == 0, "of unknown shape"
    assert (acl.set_tensor_const(desc, 64, 8), acl.set_tensor_place_ment(desc, 1)) == (0, 0)
    acl.destroy_tensor_desc(desc)
    unknown = acl.create_tensor_desc(0, [-2], 2)
    assert acl.get_tensor_desc_num_dims(unknown) == 0xFFFFFFFFFFFFFFFE, "of unknown rank"
    acl.destroy_tensor_desc(unknown)


def test_dims_are_a_short_list_of_ints(ready: Any) -> None:
    assert ready.create_tensor_desc(0, [1] * 129, 2) == 0
    for dims, kind in (((1, 2), TypeError), ([1.5], TypeError), ([1 << 63], ValueError)):
        with pytest.raises(kind):
            ready.create_tensor_desc(0, dims, 2)


def test_half_precision(acl: Any) -> None:
    for value in (0.0, 1.0, -2.5, 65504.0, 2**-24):
        bits = int(np.float16(value).view(np.uint16))
        assert acl.float_to_float16(value) == bits
        assert acl.float16_to_float(bits) == value
    assert acl.float_to_float16(1e9) == 0x7BFF
    assert acl.float_to_float16(-1e9) == 0xFBFF
    assert acl.float16_to_float(0x7C00) == 65536.0, "an infinity becomes a number, as in the C source"
    assert acl.float16_to_float(0xFE00) == -98304.0
    assert (acl.data_type_size(0), acl.data_type_size(9), acl.data_type_size(999)) == (4, 8, 0)


def test_aipp_parameters_are_kept_and_never_attached(ready: Any, models: Models) -> None:
    acl, mdl = ready, ready.mdl
    assert mdl.create_aipp(0) == 0
    aipp = mdl.create_aipp(2)
    assert mdl.set_aipp_src_image_size(aipp, 32, 32) == 0
    assert mdl.set_aipp_pixel_var_reci(aipp, 1.0, 1.0, 1.0, 1.0, 1) == 0
    assert mdl.set_aipp_pixel_var_reci(aipp, 1.0, 1.0, 1.0, 1.0, 2) == INVALID, "of two images"
    size, code = mdl.get_aipp_data_size(2)
    assert (size > 0, code) == (True, 0)
    assert mdl.get_aipp_data_size(0) == (0, INVALID)
    model, code = mdl.load_from_file(models.add())
    assert code == 0
    dataset = mdl.create_dataset()
    for attach in (mdl.set_input_aipp, mdl.set_aipp_by_input_index):
        assert attach(model, dataset, 0, 0) == INVALID
        assert attach(model, dataset, 0, aipp) == 200001 or acl.get_recent_err_msg()
        assert attach(BOGUS, dataset, 0, aipp) == 545001 or acl.get_recent_err_msg()
    assert mdl.get_aipp_type(model, 0) == (0, 0xFFFFFFFF, 0)
    assert mdl.get_aipp_type(model, 9)[2] == INVALID
    assert mdl.get_aipp_type(BOGUS, 0)[2] != 0
    assert mdl.get_first_aipp_info(model, 0)[0] is None
    assert mdl.get_first_aipp_info(BOGUS, 0)[1] != 0
    assert (mdl.destroy_aipp(aipp), mdl.destroy_dataset(dataset), mdl.unload(model)) == (0, 0, 0)


def test_load_options(ready: Any, models: Models) -> None:
    mdl, path = ready.mdl, models.add()
    config = mdl.create_config_handle()
    assert mdl.load_with_config(config) == (0, INVALID), "it does not say from where"
    assert mdl.set_config_opt(config, 0, 7) == 0
    for attribute, value in ((0, 8), (3, 0), (30, 1), (-1, 1)):
        assert mdl.set_config_opt(config, attribute, value) == INVALID
    for attribute, odd in ((2, 5), (1, "1")):
        with pytest.raises(TypeError, match="args parse failed"):
            mdl.set_config_opt(config, attribute, odd)
    assert (mdl.set_config_opt(config, 1, 1), mdl.set_config_opt(config, 2, path)) == (0, 0)
    model, code = mdl.load_with_config(config)
    assert (code, mdl.unload(model)) == (0, 0)
    content = Path(path).read_bytes()
    memory = ctypes.create_string_buffer(content, len(content))
    assert mdl.set_config_opt(config, 1, 3) == 0
    assert mdl.set_config_opt(config, 3, ctypes.addressof(memory)) == 0
    assert mdl.load_with_config(config) == (0, INVALID), "without a size"
    assert mdl.set_config_opt(config, 4, len(content)) == 0
    model, code = mdl.load_with_config(config)
    assert (code, mdl.unload(model)) == (0, 0)
    folder = ctypes.create_string_buffer(b"weights")
    assert mdl.set_config_opt(config, 14, ctypes.addressof(folder)) == 0
    assert mdl.destroy_config_handle(config) == 0
    with pytest.raises(EmulatorError):
        mdl.set_config_opt(config, 0, 1)


def test_a_file_is_a_bundle_of_one_model(ready: Any, models: Models) -> None:
    mdl = ready.mdl
    assert mdl.bundle_load_from_file("none.model")[1] != 0
    bundle, code = mdl.bundle_load_from_file(models.add())
    assert (code, mdl.bundle_get_model_num(bundle)) == (0, (1, 0))
    model, code = mdl.bundle_get_model_id(bundle, 0)
    assert code == 0
    assert mdl.bundle_get_model_id(bundle, 1) == (0, INVALID)
    assert mdl.unload(model) == INVALID, "it belongs to the bundle"
    assert mdl.bundle_unload(bundle) == 0
    for answer in (mdl.bundle_unload(bundle), mdl.bundle_get_model_num(bundle)[1]):
        assert answer != 0
    assert mdl.bundle_get_model_id(bundle, 0)[1] != 0
    content = Path(models.add()).read_bytes()
    memory = ctypes.create_string_buffer(content, len(content))
    bundle, code = mdl.bundle_load_from_mem(ctypes.addressof(memory), len(content))
    assert (code, mdl.bundle_unload(bundle)) == (0, 0)
