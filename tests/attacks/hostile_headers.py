"""Files whose container is wrong: what makes each, and what it must be refused for."""

import io
import json
import pickle
import struct
import zipfile

from tests.attacks.forging import (
    DATA,
    DOWN,
    LOW_RANK,
    UP,
    container,
    edit_file,
    tensor,
    with_tensors,
)

NAN = struct.pack("<5f", 1, 2, 3, 4, float("nan"))
INF = struct.pack("<5f", 1, float("-inf"), 3, 4, 5)
DEEP = "[" * 50_000
HUGE = "9" * 5_000
BIG = 1 << 60


def raw_header(text: str) -> bytes:
    return container(text, DATA)


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(print))
    return buffer.getvalue()


def million_empty_tensors() -> bytes:
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return container("{" + ",".join(one % i for i in range(1_000_000)) + "}")


def many_tensors_in_one_mebibyte() -> bytes:
    one = '"%d":{"dtype":"F32","shape":[],"data_offsets":[%d,%d]}'
    text = "{" + ",".join(one % (i, 4 * i, 4 * i + 4) for i in range(5_000)) + "}"
    return container(text, bytes(20_000))


HEADERS = {
    # ---- not a safetensors file at all
    "empty": (lambda: b"", "cut off"),
    "seven_bytes": (lambda: b"\0" * 7, "cut off"),
    "only_a_length": (lambda: struct.pack("<Q", 2), "cut off"),
    "header_longer_than_file": (lambda: container("{}", length=200), "cut off"),
    "header_of_2_to_63": (lambda: container("{}", length=1 << 63), "at most 1048576 bytes"),
    "all_ones": (lambda: b"\xff" * 4096, "at most 1048576 bytes"),
    "all_zeros": (lambda: b"\0" * 4096, "must begin"),
    "pickle": (lambda: pickle.dumps(print) * 10, "at most 1048576 bytes"),
    "pickle_as_header": (lambda: container(pickle.dumps(print)), "must begin"),
    "zip_of_pickle": (zip_file, "at most 1048576 bytes"),
    # ---- headers
    "header_of_no_bytes": (lambda: container("", DATA), "must begin"),
    "header_is_a_list": (lambda: raw_header("[]"), "must begin"),
    "header_is_cut_json": (lambda: raw_header('{"0":{"dtype":'), "not valid JSON"),
    "header_with_garbage_after": (lambda: raw_header("{}{}"), "not valid JSON"),
    "header_not_utf8": (lambda: container(b'{"\xff\xfe":1}', DATA), "UTF-8"),
    "header_utf16": (lambda: container("{}".encode("utf-16"), DATA), "must begin"),
    "deep_nesting": (lambda: raw_header('{"a":' + DEEP), "nested too deeply"),
    "deep_objects": (lambda: raw_header('{"a":' * 20_000), "nested too deeply"),
    "megabyte_of_commas": (lambda: raw_header('{"a":[' + "0," * 500_000 + "0]}"), "separators"),
    "million_empty_tensors": (million_empty_tensors, "at most 1048576 bytes"),
    "too_many_tensors": (many_tensors_in_one_mebibyte, "at most 4096 tensors"),
    "metadata_of_90_megabytes": (
        lambda: container('{"__metadata__":{"a":"' + "x" * 90_000_000 + '"}}'),
        "at most 1048576 bytes",
    ),
    "metadata_is_a_list": (lambda: raw_header('{"__metadata__":[]}'), "must be a JSON object"),
    "metadata_is_a_number": (lambda: raw_header('{"__metadata__":{"a":1}}'), "must be text"),
    "metadata_twice": (
        lambda: raw_header('{"__metadata__":{},"__metadata__":{}}'),
        "names '__metadata__' twice",
    ),
    "infinity_in_json": (lambda: raw_header('{"a":Infinity}'), "holds Infinity"),
    "integer_of_5000_digits": (lambda: raw_header('{"a":' + HUGE + "}"), "not valid JSON"),
    # ---- tensors
    "name_twice": (
        lambda: raw_header(f'{{"0":{json.dumps(UP)},"0":{json.dumps(UP)}}}'),
        "names '0' twice",
    ),
    "shape_twice": (lambda: raw_header('{"0":{"shape":[1],"shape":[2]}}'), "names 'shape' twice"),
    "tensor_is_a_string": (lambda: raw_header('{"0":"tensor"}'), "dtype, shape and data_offsets"),
    "tensor_with_extra_field": (
        lambda: with_tensors(**{"0": {**UP, "class": "os.system"}}),
        "dtype, shape and data_offsets",
    ),
    "ten_thousand_dimensions": (
        lambda: with_tensors(**{"0": tensor("F32", [1] * 9_999 + [3], 0, 12)}),
        "at most 2 axes",
    ),
    "three_dimensions": (
        lambda: with_tensors(**{"0": tensor("F32", [3, 1, 1], 0, 12)}),
        "at most 2 axes",
    ),
    "negative_size": (lambda: with_tensors(**{"0": tensor("F32", [-3, -1], 0, 12)}), "axes"),
    "empty_tensor": (lambda: with_tensors(**{"2": tensor("F32", [0], 20, 20)}), "none empty"),
    "fractional_size": (lambda: with_tensors(**{"0": tensor("F32", [3.0, 1], 0, 12)}), "axes"),
    "size_true": (lambda: with_tensors(**{"0": tensor("F32", [3, True], 0, 12)}), "axes"),
    "shape_is_a_string": (lambda: with_tensors(**{"0": tensor("F32", "31", 0, 12)}), "axes"),
    "size_overflows_64_bits": (
        lambda: with_tensors(**{"0": tensor("F32", [1 << 33, 1 << 33], 0, 12)}),
        "do not fit its shape",
    ),
    "claims_an_exabyte": (
        lambda: with_tensors(**{"0": tensor("F32", [BIG, 1], 0, 4 * BIG)}),
        "overlaps",
    ),
    "last_claims_an_exabyte": (
        lambda: with_tensors(**{"1": tensor("F32", [1, BIG], 12, 12 + 4 * BIG)}),
        "cut off",
    ),
    "negative_offset": (lambda: with_tensors(**{"0": tensor("F32", [3, 1], -12, 0)}), "offsets"),
    "end_before_begin": (lambda: with_tensors(**{"0": tensor("F32", [3, 1], 12, 0)}), "fit"),
    "three_offsets": (
        lambda: with_tensors(**{"0": {**UP, "data_offsets": [0, 12, 12]}}),
        "two offsets",
    ),
    "overlap": (lambda: with_tensors(**{"1": tensor("F32", [1, 2], 8, 16)}), "overlaps"),
    "same_place_twice": (lambda: with_tensors(**{"2": DOWN}), "overlaps"),
    "hole": (lambda: with_tensors(**{"1": tensor("F32", [1, 1], 16, 20)}), "hole"),
    "bytes_left_over": (lambda: edit_file(LOW_RANK, data=DATA + b"\0"), "left over"),
    "data_cut_off": (lambda: edit_file(LOW_RANK, data=DATA[:-1]), "cut off"),
    "dtype_int8": (lambda: with_tensors(**{"0": tensor("I8", [3, 4], 0, 12)}), "dtype"),
    "dtype_object": (lambda: with_tensors(**{"0": tensor("O", [3, 1], 0, 12)}), "dtype"),
    "dtype_is_a_list": (lambda: with_tensors(**{"0": {**UP, "dtype": ["F32"]}}), "dtype"),
    "tensor_name_goes_up": (lambda: with_tensors(**{"../../etc/passwd": DOWN}), "names consist"),
    "tensor_name_is_a_path": (lambda: with_tensors(**{"/etc/passwd": DOWN}), "names consist"),
    "tensor_name_with_nul": (lambda: with_tensors(**{"a\0b": DOWN}), "names consist"),
    "tensor_name_empty": (lambda: with_tensors(**{"": DOWN}), "names consist"),
    "tensor_name_too_long": (lambda: with_tensors(**{"a" * 10_000: DOWN}), "names consist"),
    "tensor_name_cyrillic": (lambda: with_tensors(а=DOWN), "names consist"),
    "nan": (lambda: edit_file(LOW_RANK, data=NAN), "NaN or infinity"),
    "minus_infinity": (lambda: edit_file(LOW_RANK, data=INF), "NaN or infinity"),
}
