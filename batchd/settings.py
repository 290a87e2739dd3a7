"""Every default, limit and unit, in one place. Units stand last in the names.

Numbers that were measured say so. Nothing here is read from the environment.
"""

from typing import Final

# --- The formats -----------------------------------------------------------------------------------------------
FORMAT_VERSION: Final = 3
"""Raised when a journal written today could not be read by the batchd of yesterday."""
RECORD_BYTES_MAX: Final = 65_512
"""A record this long fills 16 LMDB pages exactly; 65,536 would waste a seventeenth (measured: +6.3 %)."""
VALUE_BYTES_MAX: Final = 1 << 30
"""One input or one result may not be larger."""
VALUE_FILE_BYTES_MIN: Final = 1 << 20
"""A value from here on lies in a file of its own: its bytes then pass neither socket nor pipe nor supervisor."""
FRAME_META_BYTES_MAX: Final = 8 << 20
"""The structured part of one message; payloads are bounded by VALUE_BYTES_MAX."""

READ_BYTES: Final = 120 << 10
"""Asked of a pipe or socket at once: from 128 KiB on, the C library maps new memory for each read (13 us)."""

# --- The journal -----------------------------------------------------------------------------------------------
MAP_BYTES: Final = 64 << 30
"""Address space per batch, not disk: a 4 TiB map opens in 0.25 ms. Only the supervisor ever grows it."""
READERS_MAX: Final = 4096
"""Reader slots of a batch's environment, fixed by the first opener (64 bytes each)."""
CROWDED_WAIT_S: Final = 0.05
"""A worker that finds no slot looks again so often."""
LOCK_BYTES: Final = 72 << 10
"""Of a batch's reader slots so many bytes get their blocks at once: 1,150 readers, more than WORKERS_MAX."""
READERS_CHECK_COMMITS: Final = 1024
"""So often slots of readers that died within a transaction are freed: until then no page they saw is used again.

Who lives and has been reading for as many commits is warned of."""
FORK_WAIT_S: Final = 5.0
"""A fork waits at most this long for reads that are under way in other threads. They copy bytes, which takes
microseconds; where a disk holds one up, the child is forked all the same and can read none of these batches."""
CHECKPOINT_ENTRIES: Final = 2_000
"""Write the interval checkpoint after so many entries, so that a restart reads no more again (10 ms).

Not after so many records: one may hold the outcomes of 1,500 jobs that were reported one by one.
"""
COMMIT_GAP_S: Final = 0.005
"""Outcomes nobody waits for gather this long after a commit; each commit costs about 0.3 ms of CPU."""
UNSAVED_BYTES_MAX: Final = 16 << 20
"""Of outcomes and checkpoints so much waits for a commit; then reports stay unread, and workers wait for the disk."""
DISK_RESERVE_BYTES: Final = 32 << 20
"""Large values and commits leave so much free, and no batch is made with less: to cancel, leave and start again."""
RESERVE_BYTES: Final = 16 << 20
"""Held by a file beside the batches, and freed for whoever cancels or stops while the disk is full."""
DISK_RETRY_S: Final = 1.0
"""How often a full disk is asked again."""
LIGHT_COMMIT_ENTRIES: Final = 64
LIGHT_COMMIT_BYTES: Final = 64 << 10
"""A commit of no more than this is made by the loop itself: it takes about as long as handing it over."""
LEAD_S: Final = 0.005
"""So long the loop may be held up by a commit it makes itself; then another thread goes on with it."""
NAME_CHARS_MAX: Final = 100
"""Of a batch: it stands in a column, and is typed."""

# --- Leases ----------------------------------------------------------------------------------------------------
LEASE_TARGET_S: Final = 0.2
"""A lease aims at this much work: two of them keep a worker busy over the longest rest; each can be taken back."""
LEASE_JOBS_MAX: Final = 65_536
LEASE_GROWTH_MAX: Final = 8
"""A lease may be at most this many times as large as the last one that was measured."""
LEASE_TAKERS_MAX: Final = 4
"""So many batches that take turns with the same workers share the target: a small one is sooner over."""
LEASES_PER_WORKER: Final = 2
"""Outstanding at once: one runs while the next waits in the pipe, which hides the round trip."""
COSTLY_JOBS_MAX: Final = 4_096
"""Of a batch's unfinished jobs so many, the costliest, are known by their cost and can start before the others."""
LONG_JOB_SHARE: Final = 0.25
"""A costly job that would fill more than this share of a lease goes before the others, in a lease of its own."""
LANES: Final = 16
"""Leases of one worker the flight recorder can describe at once: outstanding plus not yet committed."""
TRANSCRIPT_BYTES: Final = 1 << 18
"""Of what a worker reported so much outlives its supervisor: many times what rests and commits leave unwritten."""
ACK_INTERVAL_S: Final = 0.001
"""A worker reports when this much time has passed since its last report: every job of 1 ms and more at once."""
TURNS_S: Final = 1.0
"""Batches that cannot share the workers there are take turns of about this length."""
STEAL_MIN_S: Final = 0.004
"""Work is taken back from a slow worker only when at least this much would move."""
CUT_WAIT_S: Final = 0.001
"""Time between writing a lease's limit and reading the worker's position again (see worker/recorder.py)."""

# --- Retry -----------------------------------------------------------------------------------------------------
CRASHES_MAX: Final = 3
INTERRUPTIONS_MAX: Final = 5
BACKOFF_S_MIN: Final = 0.2
BACKOFF_S_MAX: Final = 60.0
BACKOFF_JITTER: Final = 0.25
"""A delay is shortened by up to this share, so that retries do not come in step."""
BACKOFF_BUCKET_RATIO: Final = 0.1
"""Due times are rounded up to this share of their delay: a million waiting jobs stand in a few buckets."""
SAME_FAILURE_STOP: Final = 100
"""When the first so many finished jobs of a batch all failed the same way, the batch stops and says so."""

# --- Workers ---------------------------------------------------------------------------------------------------
RESTART_DEATHS_MAX: Final = 5
RESTART_PERIOD_S: Final = 30.0
"""So many unexplained deaths within the period without a finished job stop the pool (as Erlang/OTP does)."""
SHORT_S: Final = 1.0
"""When the system refused a process, another is asked for after this time, as long as there are others."""
MEMORY_PER_JOB_BYTES_MIN: Final = 16 << 20
"""No job may be given less: a worker takes most of it (measured: 11 to 12 MiB) before any code of the task's runs."""
OUTPUT_TAIL_BYTES: Final = 4_096
"""Of what a failing job printed, this much is kept."""
COMMAND_OUTPUT_BYTES_MAX: Final = 64 << 20
"""What a command may write to stdout: its result, of which a worker holds two copies for a moment."""
OUTPUT_FILE_BYTES_MAX: Final = 8 << 20
"""A worker's capture file is cut back when it passes this."""
TRACEBACK_CHARS_MAX: Final = 16_384
MESSAGE_CHARS_MAX: Final = 2_000
STACK_DUMP_S: Final = 0.05
"""Between SIGABRT, which lets a hung worker print its Python stack, and SIGKILL."""
KILL_WAIT_S: Final = 10.0
TERM_WAIT_S: Final = 0.5
"""Whoever stops a unit of systemd's or a container sends SIGTERM to all that is in it, in any order. So the end of a
worker by one is told this much later: by then it is known whether the supervisor has got one as well."""

# --- What a job says about itself --------------------------------------------------------------------------------
CHECKPOINT_BYTES_MAX: Final = 64 << 20
"""A pickled checkpoint may not be larger: it is written durably each time, beside everybody's outcomes."""
LOG_LINE_BYTES_MAX: Final = 8 << 10
LOG_BYTES_MAX: Final = 64 << 20
"""A batch's log of what its jobs said is never larger; its last line then says so."""
CANCEL_GRACE_S: Final = 2.0
"""A job that has looked at `cancelled` may end by itself for so long before it is killed."""
GRACE_LOOK_S: Final = 0.01
"""How often it is looked whether it has."""

# --- The supervisor and its clients -----------------------------------------------------------------------------
SAMPLE_S: Final = 0.25
"""Gauges are read this often, less often when reading them would cost more than SAMPLE_COST_MAX of a core."""
SAMPLE_COST_MAX: Final = 0.01
LIMIT_CHECK_S: Final = 0.02
"""Timeouts are enforced to about this."""
LOOK_S: Final = 0.5
"""So often, with a sample, it is looked whether open batches have their files, and who reads them for long."""
PROGRESS_S: Final = 0.1
"""Clients hear of progress at most this often."""
ANSWER_S: Final = 0.002
"""An answer nobody waits for goes with the next news, or alone after this long: each message costs a wake-up."""
START_WAIT_S: Final = 15.0
REST_S_MAX: Final = 0.1
"""Reports of busy workers are read at most this much later, and commits come in step with that: a turn costs 0.3 ms
of CPU, its commit as much again. When the machine dies, jobs that ended within this time run again."""
REST_S_EAGER: Final = 0.02
"""The same where somebody waits for each outcome."""
REST_S_MIN: Final = 0.001
REST_SHARE: Final = 3
"""Every worker has work to begin for so many times as long: heavy-tailed jobs often take half their mean time."""
LINGER_S: Final = 0.2
"""The supervisor waits this long for another client before it leaves."""
OWNER_WAIT_S: Final = 5.0
"""A supervisor that left a throw-away journal behind waits this long for the end of the process that wanted it."""
SUBMIT_WINDOW_BYTES: Final = 8 << 20
"""Input a client may have sent and not yet seen acknowledged."""
PROGRESS_PLAIN_S: Final = 10.0
SUPERVISOR_RESTARTS_MAX: Final = 5
"""A run starts at most so many supervisors without progress in between."""
WORKERS_MAX: Final = 1024
"""Workers one supervisor may be asked for; each takes four of its descriptors."""
DESCRIPTORS_SPARE: Final = 32
"""No worker is started that would leave the supervisor fewer: for batches, clients, and to read what they use."""
SLOTS: Final = 2048
"""Slots of the flight recorder: living workers plus gone ones whose outcomes are not durable yet."""
IDLE_TEMPLATES_MAX: Final = 4
"""Templates kept for keys that no live batch has: maps of a few functions in turn import each only once.

More are processes with all that a function imports and holds, for functions that may never come again.
"""
OPEN_BATCHES_MAX: Final = 256
"""Each open batch takes MAP_BYTES of address space and a few descriptors."""
DOOR_REST_S: Final = 0.1
"""A supervisor that has no descriptor left for another client looks again after this time."""
REFUSED_TOLD_S: Final = 60.0
"""Of other users at the door the first is told in the log, and how many more there were after so long."""
