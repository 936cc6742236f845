"""Given weights before anything is built on them: what they are fed is said, and whether they answer as they should."""

from __future__ import annotations

import dataclasses

from edgewise.errors import RequestError
from edgewise.measure.per_class import per_class
from edgewise.report.watch import Watch
from edgewise.run import plausibility, provenance
from edgewise.run.data_for import describe_images
from edgewise.run.job import Job
from edgewise.run.steps import Model, Steps


def say_images(job: Job, watch: Watch) -> None:
    """Tell what there is to say of the images, and for given weights what they are fed and by whose word."""
    if not watch.planned:  # the plan says the same
        for note in job.data.notes:
            watch.detail(note)
        for caution in job.data.cautions:
            watch.warn(caution)
        if job.weights is not None:
            watch.say(f"{job.spec.name} is fed " + "; ".join(provenance.describe_feeding(job.spec, job.data)))
    if job.weights is not None and (warning := provenance.image_warning(job.spec, job.data)):
        watch.warn(warning)


def examine_baseline(job: Job, steps: Steps, baseline: Model, watch: Watch) -> Model:
    """The baseline with what is known of its images among its facts; given weights looked at more closely.

    Where they miss what is expected, answer implausibly, or are fed an assumed normalisation, the usual ones are tried on a
    few images and the likely one is named. Raises RequestError where they miss what is expected.
    """
    facts = {**baseline.facts, "images": describe_images(job.data)}
    if job.weights is None:
        return dataclasses.replace(baseline, facts=facts)
    facts["fed"] = provenance.describe_feeding(job.spec, job.data)
    figures = per_class(baseline.answers, job.data.test.labels)
    doubt = plausibility.doubt_answers(figures)
    short = plausibility.compare_to_expected(sum(figures.right) / figures.n, job.recipe.expect_top1)
    if doubt or short or provenance.assumed_fields(job.spec):
        trials = plausibility.try_preparations(steps.load(baseline), job.data, job.spec)
        advice = plausibility.preparation_advice(trials)
        facts["preparations_tried"] = plausibility.as_facts(trials[:4])
        if short:
            raise RequestError(
                f"{'; '.join(filter(None, (short, doubt)))}; {advice}. Correct how they are fed, or --expect-top1"
            )
        watch.warn("; ".join(filter(None, (doubt, advice))))
        facts["doubt"] = doubt
    return dataclasses.replace(baseline, facts=facts)
