"""Files whose document is wrong: what makes each, and what it must be refused for."""

import struct

from tests.attacks.forging import (
    DATA,
    DOWN,
    GATED,
    GATED_TENSORS,
    LOW_RANK,
    MOMENT,
    MOMENT_TENSORS,
    UP,
    ZEROS,
    container,
    edit_file,
    extremes,
    gated,
    low_rank,
    low_rank_entries,
    moment,
    tensor,
)

REPORT = {"residual": 0, "drift": None, "condition": 1.0, "warnings": []}
DEEP = "[" * 50_000


def many(kind: str, count: int) -> bytes:
    """As many entries as a file may have, each with tensors of its own; the last one overflows."""
    roles = {"low-rank": ("up", "down"), "gated": ("keys", "images", "targets")}[kind]
    entries = []
    for i in range(count):
        numbers = {role: i * len(roles) + j for j, role in enumerate(roles)}
        common = {**GATED, "modules": {f"m{i}": 1}} if kind == "gated" else {"module": f"m{i}"}
        entries.append({**common, "kind": kind, **numbers})
    last = len(roles) * count - 1
    entries[-1][roles[-1]] = [last, 100]
    infos = {str(i): tensor("F32", [1, 1], 4 * i, 4 * i + 4) for i in range(last + 1)}
    return edit_file(*entries, tensors=infos, data=struct.pack("<f", 1e30) * (last + 1))


def megabyte_of_entries() -> bytes:
    """Right but for its length and its last number."""
    infos = {str(i): tensor("F32", [1, 1], 4 * i, 4 * i + 4) for i in range(8_000)}
    entries = [{"kind": "tensor", "module": f"m{i}", "tensor": i} for i in range(8_000)]
    return edit_file(*entries, tensors=infos, data=bytes(31_996) + b"\xff" * 4)


def nan_at_the_end() -> bytes:
    """As many tensors as a file may have, in as many entries."""
    infos = {str(i): tensor("F32", [1, 1], 4 * i, 4 * i + 4) for i in range(2048)}
    entries = [
        {"kind": "low-rank", "module": f"m{i}", "up": 2 * i, "down": 2 * i + 1} for i in range(1024)
    ]
    return edit_file(*entries, tensors=infos, data=bytes(8_188) + b"\xff" * 4)


def many_statistics_of_one_tensor() -> bytes:
    """80 kB that would be unpacked to 300 MB."""
    infos = {"0": tensor("F32", [20_100], 0, 80_400), "1": tensor("F32", [200], 80_400, 81_200)}
    entries = [{**MOMENT, "module": f"m{i}"} for i in range(1000)]
    return edit_file(*entries, tensors=infos, data=bytes(81_200))


DOCUMENTS = {
    "a_megabyte_of_entries": (megabyte_of_entries, "separators|at most 4096 tensors"),
    "nan_after_a_thousand_entries": (nan_at_the_end, "'2047' holds NaN"),
    "overflow_after_a_thousand_entries": (lambda: many("low-rank", 1024), "'2047' times 2"),
    "overflow_after_hundreds_of_keys": (lambda: many("gated", 512), "'1535' times 2"),
    "too_many_keys": (lambda: many("gated", 513), "at most 512 different keys"),
    "more_entries_than_allowed": (
        lambda: edit_file(*({**LOW_RANK, "module": f"m{i}"} for i in range(1025))),
        "at most 1024 names",
    ),
    "one_tensor_for_a_thousand_statistics": (many_statistics_of_one_tensor, "share tensors of"),
    "more_keys_than_can_be_independent": (
        lambda: edit_file(
            {**GATED, "modules": {"a": 1}, "targets": 1},
            tensors={"0": tensor("F32", [3, 1], 0, 12), "1": tensor("F32", [2, 1], 12, 20)},
        ),
        "more than can be independent",
    ),
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
    "version_3": (lambda: edit_file(LOW_RANK, version=3), "version must be 1 to 2"),
    "version_true": (lambda: edit_file(LOW_RANK, version=True), "version must be 1 to 2"),
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
    "report_is_a_list": (lambda: low_rank(report=[]), "JSON object"),
    "report_of_words": (
        lambda: low_rank(report={**REPORT, "drift": "small"}),
        "'drift' of a report must be a finite number",
    ),
    "report_lacks_a_figure": (lambda: low_rank(report={"warnings": []}), "lacks 'residual'"),
    "report_with_code": (lambda: low_rank(report={**REPORT, "code": 1}), "unknown fields"),
    "report_warns_in_one_text": (lambda: low_rank(report={**REPORT, "warnings": "x"}), "a list"),
    "report_with_escape": (
        lambda: low_rank(report={**REPORT, "warnings": ["\x1b[2J"]}),
        "control characters",
    ),
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
    "extremes_in_version_1": (lambda: moment(extremes={}), "unknown fields"),
    "extremes_are_empty": (lambda: extremes(rows=None), "lacks 'rows'"),
    "extremes_of_another_width": (lambda: extremes(rows=0), "must have shape"),
    "extremes_negative": (lambda: extremes(count=-1.0), "must not be negative"),
    "energies_in_no_bin": (lambda: extremes(energies=3), "impossible"),
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
