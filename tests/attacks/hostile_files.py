"""Files that try to abuse or confuse the loader, each with what it must be refused for.

Run `python tests/attacks/hostile_files.py FOLDER` to write them out and try them on other readers.
Most are signed with a correct digest, so that the check which they aim at is reached.
"""

import hashlib
import io
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path

ZEROS = "0" * 32
MARK = b'\\"digest\\":\\"'


def container(header: bytes | str | dict, data: bytes = b"", length: int | None = None) -> bytes:
    """Length, header, data; any of them may be a lie."""
    if isinstance(header, dict):
        header = json.dumps(header, separators=(",", ":"))
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def signed(file: bytes) -> bytes:
    """The file with the digest that belongs to it, if there is a place for one."""
    length = int.from_bytes(file[:8], "little")
    at = file.find(MARK, 8, 8 + length) + len(MARK)
    if at < len(MARK) or at + 32 > 8 + length:
        return file
    blank = file[:at] + ZEROS.encode() + file[at + 32 :]
    return file[:at] + hashlib.sha256(blank).hexdigest()[:32].encode() + file[at + 32 :]


def tensor(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


UP = tensor("F32", [3, 1], 0, 12)
DOWN = tensor("F32", [1, 2], 12, 20)
DATA = struct.pack("<5f", 1, 2, 3, 4, 5)
LOW_RANK = {"kind": "low-rank", "module": "a.b", "up": 0, "down": 1}
GATED = {
    "kind": "gated",
    "statistics": "s",
    "keys": 0,
    "images": 0,
    "targets": 1,
    "gate": "sigmoid",
    "parameters": {"bias": 0.75, "temperature": 0.1},
    "normalised": False,
    "floor": None,
    "modules": {"a": 1, "b": 2},
}
GATED_TENSORS = {"0": tensor("F32", [1, 2], 0, 8), "1": tensor("F32", [1, 3], 8, 20)}
MOMENT = {
    "kind": "moment",
    "module": "a",
    "outer": 0,
    "total": 1,
    "count": 2.0,
    "weight_squares": 2.0,
    "fourth": 1.0,
    "dtype": "float32",
    "provenance": {},
}
MOMENT_TENSORS = {"0": tensor("F32", [3], 0, 12), "1": tensor("F32", [2], 12, 20)}


def edit_file(*entries, tensors=None, data=DATA, **document) -> bytes:
    """A file of this library, right in every respect but those given."""
    whole = {"digest": ZEROS, "version": 1, **document, "entries": list(entries)}
    text = json.dumps(whole, separators=(",", ":"))
    infos = {"0": UP, "1": DOWN} if tensors is None else tensors
    file = container({"__metadata__": {"rankedit": text}, **infos}, data)
    return signed(file) if whole["digest"] == ZEROS else file


def low_rank(**changes) -> bytes:
    return edit_file({**LOW_RANK, **changes})


def gated(**changes) -> bytes:
    return edit_file({**GATED, **changes}, tensors=GATED_TENSORS)


def moment(**changes) -> bytes:
    return edit_file({**MOMENT, **changes}, tensors=MOMENT_TENSORS)


def with_tensors(**tensors) -> bytes:
    """A header of any tensors, whose file is as long as the true one."""
    return edit_file(LOW_RANK, tensors={"0": UP, "1": DOWN} | tensors)


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
    text = "{" + ",".join(one % (i, 4 * i, 4 * i + 4) for i in range(15_000)) + "}"
    return container(text, bytes(60_000))


NAN = struct.pack("<5f", 1, 2, 3, 4, float("nan"))
INF = struct.pack("<5f", 1, float("-inf"), 3, 4, 5)
DEEP = "[" * 100_000
HUGE = "9" * 5_000
BIG = 1 << 60

# name: (what makes the file, what the refusal must say)
HOSTILE = {
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
    "too_many_tensors": (many_tensors_in_one_mebibyte, "at most 10000 tensors"),
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
    # ---- the document
    "no_document": (lambda: container({"0": UP, "1": DOWN}, DATA), "no file of this library"),
    "another_document_too": (
        lambda: container({"__metadata__": {"rankedit": "{}", "x": ""}}, b"\0" * 8)[:-8],
        "nothing else",
    ),
    "document_not_json": (
        lambda: container({"__metadata__": {"rankedit": "import os"}}),
        "not valid JSON",
    ),
    "document_is_a_list": (lambda: container({"__metadata__": {"rankedit": "[]"}}), "JSON object"),
    "document_deep": (
        lambda: container({"__metadata__": {"rankedit": '{"version":' + DEEP}}),
        "nested too deeply",
    ),
    "version_2": (lambda: edit_file(LOW_RANK, version=2), "version must be 1"),
    "version_true": (lambda: edit_file(LOW_RANK, version=True), "version must be 1"),
    "wrong_digest": (
        lambda: edit_file(LOW_RANK)[:-1] + b"\x41",
        "damaged: its content does not match its digest",
    ),
    "digest_is_a_number": (lambda: edit_file(LOW_RANK, digest=0), "must be text"),
    "digest_in_capitals": (lambda: edit_file(LOW_RANK, digest="A" * 32), "hexadecimal"),
    "unknown_document_field": (lambda: edit_file(LOW_RANK, code="1"), "unknown fields"),
    "entries_missing": (
        lambda: container({"__metadata__": {"rankedit": f'{{"version":1,"digest":"{ZEROS}"}}'}}),
        "lacks 'entries'",
    ),
    "entries_is_an_object": (lambda: low_rank_entries({}), "entries must be a list"),
    "entry_is_a_string": (lambda: edit_file("low-rank"), "JSON object"),
    "kind_is_a_class": (lambda: low_rank(kind="torch.nn.Linear"), "must be one of low-rank"),
    "entry_names_a_class": (lambda: low_rank(cls="os.system"), "unknown fields"),
    "module_goes_up": (lambda: low_rank(module="../../etc/passwd"), "names consist"),
    "module_is_a_pattern": (lambda: low_rank(module="(a+)+$"), "names consist"),
    "module_with_newline": (lambda: low_rank(module="a\n"), "names consist"),
    "module_twice": (lambda: edit_file(LOW_RANK, LOW_RANK), "described twice"),
    "tensor_beyond_the_last": (lambda: low_rank(up=2), "number of a tensor"),
    "tensor_number_true": (lambda: low_rank(up=True), "number of a tensor"),
    "tensor_number_is_text": (lambda: low_rank(up="0"), "number of a tensor"),
    "tensor_belongs_to_nothing": (lambda: edit_file(), "belong to nothing"),
    "ranks_differ": (lambda: low_rank(up=1, down=0), "must have shape"),
    "exponent_huge": (lambda: low_rank(up=[0, 10**9]), "exponent"),
    "exponent_overflows": (lambda: low_rank(up=[0, 200]), "infinite"),
    "gate_unknown": (lambda: gated(gate="os.system"), "known are"),
    "gate_parameter_missing": (lambda: gated(parameters={"bias": 1}), "has the parameters"),
    "gate_parameter_huge": (
        lambda: gated(parameters={"bias": 10**400, "temperature": 1}),
        "finite number",
    ),
    "temperature_zero": (lambda: gated(parameters={"bias": 0, "temperature": 0}), "positive"),
    "too_many_biases": (
        lambda: gated(parameters={"bias": [0] * 9, "temperature": 1}),
        "one value or one for each",
    ),
    "floor_is_a_list": (lambda: gated(floor=[]), "finite number"),
    "normalised_is_a_number": (lambda: gated(normalised=1), "true or false"),
    "statistics_with_escape": (lambda: gated(statistics="\x1b[2J"), "control characters"),
    "half_a_surrogate_pair": (lambda: gated(statistics="\ud800"), "control characters"),
    "widths_do_not_fit": (lambda: gated(modules={"a": 1, "b": 1}), "must have shape"),
    "width_negative": (lambda: gated(modules={"a": 4, "b": -1}), "must be positive"),
    "keys_without_length": (
        lambda: edit_file(GATED, tensors=GATED_TENSORS, data=bytes(8) + DATA[8:]),
        "impossible",
    ),
    "triangle_too_small": (
        lambda: edit_file(
            MOMENT, tensors={"0": MOMENT_TENSORS["0"] | {"shape": [3, 1]}, "1": DOWN}
        ),
        "must have shape",
    ),
    "count_negative": (lambda: moment(count=-1), "must not be negative"),
    "count_is_text": (lambda: moment(count="1"), "finite number"),
    "moment_dtype_unknown": (lambda: moment(dtype="object"), "dtype of statistics"),
    "provenance_unknown_field": (lambda: moment(provenance={"code": "x"}), "unknown fields"),
    "provenance_tokens_negative": (lambda: moment(provenance={"tokens": -1}), "whole number"),
    "base_too_short": (lambda: edit_file(LOW_RANK, base=[]), "one fingerprint per module"),
    "base_not_hexadecimal": (lambda: edit_file(LOW_RANK, base=["x" * 16]), "16 hexadecimal"),
    "user_metadata_is_a_list": (lambda: edit_file(LOW_RANK, metadata=[1]), "JSON object"),
    "parameters_are_a_list": (lambda: gated(parameters=[]), "JSON object"),
    "user_metadata_not_text": (lambda: edit_file(LOW_RANK, metadata={"a": [1]}), "must be text"),
    "user_metadata_too_long": (
        lambda: edit_file(LOW_RANK, metadata={"a": "x" * 70_000}),
        "65536",
    ),
}


def low_rank_entries(entries: object) -> bytes:
    text = json.dumps({"digest": ZEROS, "version": 1, "entries": entries})
    return container({"__metadata__": {"rankedit": text}, "0": UP, "1": DOWN}, DATA)


def main(folder: str) -> None:
    """Write every file to `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, (make, _) in HOSTILE.items():
        (Path(folder) / f"{name}.safetensors").write_bytes(make())


if __name__ == "__main__":
    main(sys.argv[1])
