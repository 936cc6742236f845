"""A network as a target's file: written in worker processes, opened by the best evaluator on this machine."""
