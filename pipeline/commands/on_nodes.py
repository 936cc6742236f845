"""One ``edgewise run`` on several machines: the first process runs it, the others train along."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from edgewise.commands.console import PASSED, print_note


def run_on_nodes(options: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """``run(options)`` in the first process; in the others every training that the nodes share."""
    from edgewise.commands.request import request_recipe
    from edgewise.run.feasible import trainings_of
    from edgewise.stages.training import nodes

    recipe = request_recipe(options)
    how = nodes.shared_training(trainings_of(recipe))
    if not nodes.is_follower():
        status = run(options)
        if how is not None:
            nodes.dismiss_followers(how, recipe.device)
        return status
    if how is not None:
        print_note(f"trained along with the first process: {nodes.follow_trainings(how, recipe.device)} trainings")
    return PASSED
