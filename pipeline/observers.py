"""The trained fake quantizers of one captured graph, in another capture of the same network."""

from __future__ import annotations

from collections import Counter

from torch.fx import GraphModule, Node

from pipeline.mixed import is_fake_quantizer


def carry_over(trained: GraphModule, opened: GraphModule) -> GraphModule:
    """``opened``, the same network prepared for other image sizes, with the tensors and fake quantizers of ``trained``.

    Where its image's sides are open, a network may compute the same by other operators (a pooling that rounds up, in
    place of a padding before it), so that quantizers are told by what they observe and not by their number. Raises
    RuntimeError where ``opened`` observes something that ``trained`` does not.
    """
    known, wanted = _observed(trained), _observed(opened)
    if missing := wanted.keys() - known.keys():
        raise RuntimeError(f"with open image sizes it quantizes {sorted(missing)}, whose ranges were never trained")
    for place, name in wanted.items():
        setattr(opened, name, getattr(trained, known[place]))
    quantizers = set(known.values())
    theirs = {key: value for key, value in trained.state_dict().items() if key.split(".")[0] not in quantizers}
    opened.load_state_dict(opened.state_dict() | theirs)
    return opened


def _observed(prepared: GraphModule) -> dict[tuple[str, int, int], str]:
    """What is observed (operator, the how-manieth of its kind, the how-manieth observer of it) -> the quantizer's name."""
    found: dict[tuple[str, int, int], str] = {}
    places: dict[Node, tuple[str, int]] = {}
    kinds: Counter[str] = Counter()
    observers: Counter[tuple[str, int]] = Counter()
    for node in prepared.graph.nodes:
        if is_fake_quantizer(prepared, node):
            place = places[node] = places[node.args[0]]
            found[*place, observers[place]] = str(node.target)
            observers[place] += 1
        else:
            places[node] = (str(node.target), kinds[str(node.target)])
            kinds[str(node.target)] += 1
    return found
