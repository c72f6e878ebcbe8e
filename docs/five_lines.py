"""The example of the README, which `make demo` runs: edit a projection, check it, take it out."""

from pathlib import Path

import torch

import rankedit as rk

torch.manual_seed(0)
layer = torch.nn.Linear(768, 320, bias=False)  # any linear projection, in any model
inputs = torch.randn(5000, 768)  # what it reads while the model works
keys, values = torch.randn(2, 768), torch.randn(2, 320)  # these inputs are to give these outputs
before = layer(inputs)
file = Path("outputs/edit.safetensors")
file.parent.mkdir(exist_ok=True)

moment = rk.SecondMoment(768).update(inputs)
edit = rk.solve_edit(layer, keys, values, rk.Metric.from_moment(moment))
with rk.attach(layer, edit):
    torch.testing.assert_close(layer(keys), values)
rk.save(edit, file)

assert torch.equal(layer(inputs), before)  # the edit is out again, bit for bit
assert torch.equal(rk.load(file)[""].delta(), edit.to(torch.float32).delta())
print(f"edited: {edit.report}")
print(f"saved:  {file}, {file.stat().st_size / 1024:.1f} KB")
