"""When a batch stops by a rule of its own: too many failures, or the first ones all alike. A pure function."""

from batchd.core.events import Options
from batchd.core.facts import BatchFacts
from batchd.core.job import JobState
from batchd.settings import SAME_FAILURE_STOP


def reason_to_stop(facts: BatchFacts, options: Options, *, are_alike: bool) -> str | None:
    """Return why the batch must stop now that a job failed, in words, or None.

    `are_alike` says that every failure so far had the same cause.
    """
    failed = facts.count(JobState.FAILED) + facts.count(JobState.QUARANTINED)
    if options.failures_max is not None and failed > options.failures_max:
        return f"{failed} jobs failed; --max-failures is {options.failures_max}"
    share = options.failures_share_max
    if share is not None:
        # Of all jobs once their number is known; before that of those done, when they are enough to tell.
        jobs = facts.size if facts.is_sealed else max(facts.done.size, SAME_FAILURE_STOP)
        if failed > share * jobs:
            return f"{failed} of {jobs} jobs failed; --max-failures is {share:.0%}"
    if options.keep_going or not are_alike or facts.count(JobState.SUCCEEDED) or failed < SAME_FAILURE_STOP:
        return None
    return f"the first {failed} finished jobs all failed the same way"
