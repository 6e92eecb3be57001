"""Writes a quantised GGUF model again in float16. Run by the python of the llama.cpp environment.

The prebuilt llama-server computes 4-bit products with AVX-VNNI, which CPUs with
AVX-512 VNNI need not have (AMD's Zen 4 and 5 among them): there it dies of an
illegal instruction. float16 products need AVX-512 only, and the weights stay those of
the model as published, so it is still a real one.

    python dequantize_gguf.py QUANTISED.gguf FLOAT16.gguf
"""

from __future__ import annotations

import os
import sys

import gguf
import numpy as np

MOSTLY_F16 = 1


def dequantize(source: str, target: str) -> None:
    reader = gguf.GGUFReader(source)
    partial = f"{target}.{os.getpid()}"
    writer = gguf.GGUFWriter(partial, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue  # the writer sets these itself
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        value = MOSTLY_F16 if field.name == "general.file_type" else field.contents()
        writer.add_key_value(field.name, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        else:
            whole = gguf.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, whole.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, target)


if __name__ == "__main__":
    dequantize(*sys.argv[1:])
