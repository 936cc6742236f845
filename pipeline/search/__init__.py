"""Which recipe is best for this network on that device: many runs, each proposed from those before it, on Optuna's engine.

A *space* is a function that asks an Optuna trial for values and returns a recipe; a *trial* is a run of that recipe, judged on
calibration images; the *study* in Optuna's storage is the only thing that workers share, beside folders and the step store.
"""
