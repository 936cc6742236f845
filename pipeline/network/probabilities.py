"""Networks that end with a softmax: seen, so that no file gets a second one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Ending = Literal["logits", "probabilities", "log-probabilities"]
_SUM = 1e-3


@torch.inference_mode()
def judge_ending(model: nn.Module, images: Tensor) -> Ending:
    """What ``model`` answers, in evaluation, judged by its answers to images [N, C, H, W] and to noise like them."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    inputs = torch.cat([images, 3 * noise])
    logits = [model(image.clone()) for image in torch.split(inputs, 1)]  # some take one at a time alone
    if not all(isinstance(answer, Tensor) for answer in logits):
        return "logits"
    answers = torch.cat(logits).double()
    if answers.dim() != 2 or answers.shape[1] < 2:
        return "logits"
    if bool((answers >= 0).all()) and _adds_to_one(answers):
        return "probabilities"
    if bool((answers <= 0).all()) and _adds_to_one(answers.exp()):
        return "log-probabilities"
    return "logits"


def _adds_to_one(answers: Tensor) -> bool:
    return bool(((answers.sum(1) - 1).abs() < _SUM).all())


def last_softmax(model: nn.Module, images: Tensor) -> str | None:
    """The name of the softmax layer over the classes whose output is the network's; None: there is no such layer."""
    last: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, given, result, name=name: last.append((name, result)))
        for name, module in model.named_modules()
        if type(module) is nn.Softmax and module.dim in (1, -1)
    ]
    try:
        with torch.inference_mode():
            result = model(images.clone())
    finally:
        for hook in hooks:
            hook.remove()
    names = [name for name, output in last if output is result]
    return names[0] if len(names) == 1 and len(last) == 1 else None
