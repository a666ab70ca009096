"""Train the MLP of the toy domain on its mixture by flow matching and write domains/toy/assets/mixture.safetensors.

    python tools/train_toy_teacher.py [steps]

Labels are dropped for half of the batches, so that the same weights serve conditional and unconditional teachers.
"""

import json
import sys

import torch
from safetensors.torch import save_file

from xdistill.domains.toy import ASSET, ASSET_KEYS, ToyDomain
from xdistill.objectives.flow_matching import FlowMatching
from xdistill.testing.harness import run_macro_step
from xdistill.times import Uniform


def main(steps: int) -> None:
    """Adam with a cosine schedule; the average of the weights over the run's end is kept."""
    domain = ToyDomain({"labels": True})
    torch.manual_seed(0)
    net = domain.network()
    objective = FlowMatching(domain.process, Uniform(0.0, 1.0), label_dropout=0.5)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    data, losses = domain.data(512, seed=0), []
    for step in range(steps):
        log = run_macro_step(objective, {"student": net}, {"student": optimizer}, data.batch(step, 0, 1), 0, step)
        schedule.step()
        average.update_parameters(net)
        losses.append(log["flow/loss"])
        if (step + 1) % 1000 == 0:
            print(step + 1, f"loss {sum(losses[-1000:]) / 1000:.4f}", flush=True)
    config = {key: getattr(domain.toy, key) for key in ASSET_KEYS}
    weights = {k: v.half().contiguous() for k, v in average.module.state_dict().items()}
    ASSET.parent.mkdir(exist_ok=True)
    save_file(weights, ASSET, {"config": json.dumps(config), "steps": str(steps), "tool": "train_toy_teacher.py"})
    print(ASSET, f"{ASSET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8000)
