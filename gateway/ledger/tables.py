"""The ledger's tables: everything the gateway knows that must outlive a power cut. Their rules stand in them.

    association 1──n instance n──1 series 1──n job 1──1 result 1──n result_object 1──n delivery    event  doomed
                                     └n job_channel n─┘    gathering  unanswered  tally  study_patient  patient_conflict

What peers said stands in `gateway.ledger.peer_tables`.

- An instance is one version of an object's bytes. Of the versions under one study, series and SOP Instance UID exactly
  one counts (`current`, or `conflict` where another version differs); the others are `superseded`. Other bytes of an
  image are `pending` until they are compared, and a `copy` where they hold the same image. A row whose file is gone is
  `missing` and counts for nothing.
- A study is of one patient (`study_patient`); where its images name two, `patient_conflict` stops all work on it until
  that is settled (`gateway.ledger.patients`).
- A series gathers arrival facts. `revision` grows with every change of its counting instances, so that work begun on
  an older revision shows. What had come by its last decision is taken: `taken_id` is the latest instance of that.
- A job is one bundle on one series. `attempt` grows with every claim and fences out whoever comes back late. While its
  series is still arriving its revision is 0, and it is waiting or running; completion gives it the revision it is for.
  Where more has come for its series, nobody claims it before that is decided upon.
- A job of a bundle of several channels is of a study: it names no series, and `job_channel` has the series of each
  channel with the revision that it is for. So has its result. `gathering` is what such a bundle waits for in a study:
  it is looked at when it is `due_at`, and `asked` grows with all that came, so that no look misses it.
- Of the results of one series, or study, and bundle exactly one is current: the one that no other names as its
  predecessor. A withdrawal is the result that follows what is withdrawn.
- `unanswered` is a rule's study of which something ended without a result; once nothing more is to come of it, it is
  looked at (`asked` as of a gathering), and where nothing of it was segmented, a reason says why: a result of the study
  and rule, of which one is current.
- A delivery is one object for one destination. What is stored there and not confirmed is looked after at `ready_at`.
- A doomed file is one that no row names any more, and that is still to be deleted.
- A tally is one counter of `gateway.ledger.tallies`: it only grows, in the transaction of what it counts.
- The ids of jobs, deliveries and commitments are never given again: a claim, or the last list that was heard, may
  outlive its row.

Times are seconds since 1970, UTC. UIDs are text as received. Booleans, enums and JSON are text or integers with checks,
so that SQLite and PostgreSQL read the same.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    and_,
)

from gateway.ledger import states
from gateway.ledger.conditions import among, is_, one_of, where
from gateway.ledger.metadata import DEFERRED, NEVER_AGAIN, metadata
from gateway.ledger.states import (
    ConflictState,
    DeliveryState,
    Ending,
    InstanceState,
    JobState,
    ResultKind,
    SeriesState,
)
from gateway.settings.model import Mode

association = Table(
    "association",
    metadata,
    Column("id", Text, primary_key=True),
    Column("calling_ae", Text, nullable=False),
    Column("called_ae", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("receiver", Text, nullable=False, server_default="receiver"),  # the process that has it
    Column("opened_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("ending", Text),
    one_of("ending", Ending),
    CheckConstraint("(ended_at IS NULL) = (ending IS NULL)", name="ended"),
    Index("ix_association_open", "calling_ae", **where("ended_at IS NULL")),
)

series = Table(
    "series",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("series_uid", Text, primary_key=True),
    Column("instances", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("first_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("expected", Integer),  # instances that a count, or a commitment list, says there are
    Column("state", Text, nullable=False),
    Column("complete_at", Double),
    Column("complete_by", Text),  # the signal that decided
    Column("deleted_at", Double),  # when retention deleted the files of its instances; nothing has come since
    Column("taken_at", Double),  # when it was last decided upon
    Column("taken_id", Integer),  # the latest of its instances then
    Column("passed_by", Text, nullable=False, server_default="{}"),  # JSON: what of it was not segmented then, how many
    one_of("state", SeriesState),
    CheckConstraint("instances >= 0 AND revision >= 1", name="counts"),
    CheckConstraint(f"({is_(SeriesState.COMPLETE)}) = (complete_at IS NOT NULL)", name="complete"),
    Index("ix_series_arriving", "last_at", **where(is_(SeriesState.ARRIVING))),
    Index("ix_series_sent_again", "last_at", **where(f"{is_(SeriesState.COMPLETE)} AND last_at > taken_at")),
    Index("ix_series_kept", "complete_at", **where(f"{is_(SeriesState.COMPLETE)} AND deleted_at IS NULL")),
    Index("ix_series_deleted", "complete_at", **where(f"{is_(SeriesState.COMPLETE)} AND deleted_at IS NOT NULL")),
)

instance = Table(
    "instance",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False),
    Column("sop_class_uid", Text, nullable=False),
    Column("transfer_syntax_uid", Text, nullable=False),
    Column("path", Text, nullable=False, unique=True),  # relative to the spool
    Column("offset_bytes", BigInteger, nullable=False),  # of the data set in the file
    Column("size_bytes", BigInteger, nullable=False),  # of the data set
    Column("sha256", Text, nullable=False),  # of the data set as sent
    Column("calling_ae", Text, nullable=False),
    Column("association_id", Text, ForeignKey("association.id")),  # none for a file adopted at start
    Column("priority", Integer, nullable=False),
    Column("received_at", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("deleted_at", Double),  # when retention deleted its file; what it is stays known
    Column("patient", Text),  # whom an image names, as a digest (`gateway.ledger.patients`); none for what is no image
    one_of("state", InstanceState),
    CheckConstraint("size_bytes > 0 AND offset_bytes > 0 AND length(sha256) = 64", name="bytes"),
    ForeignKeyConstraint(["study_uid", "series_uid"], ["series.study_uid", "series.series_uid"], **DEFERRED),
    UniqueConstraint(
        "study_uid", "series_uid", "sop_instance_uid", "sha256", "transfer_syntax_uid", name="uq_instance_version"
    ),
    Index(
        "uq_instance_counting",
        "study_uid",
        "series_uid",
        "sop_instance_uid",
        unique=True,
        **where(among("state", states.COUNTING)),
    ),
    Index("ix_instance_sop_instance_uid", "sop_instance_uid"),
    Index("ix_instance_pending", "study_uid", "series_uid", **where(is_(InstanceState.PENDING))),
)

study_patient = Table(
    "study_patient",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("patient", Text, primary_key=True),  # a digest
    Column("calling_ae", Text, nullable=False),  # who sent the first image that names them
    Column("first_at", Double, nullable=False),
)

patient_conflict = Table(
    "patient_conflict",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("winner", Text),  # whose all images are, as a digest
    Column("since_at", Double, nullable=False),
    Column("settled_at", Double),
    one_of("state", ConflictState),
    CheckConstraint(f"({is_(ConflictState.OPEN)}) = (settled_at IS NULL)", name="settled"),
    CheckConstraint(f"({is_(ConflictState.MERGED)}) = (winner IS NOT NULL)", name="winner"),
)

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text),  # none where it is of the channels that `job_channel` names
    Column("revision", Integer, nullable=False),  # of the series, that the job is for; 0 while that is arriving
    Column("bundle", Text, nullable=False),
    Column("rule", Text, nullable=False),
    Column("terms", Text, nullable=False, server_default="{}"),  # JSON: what the rule said when the job was made
    Column("mode", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("due", Double, nullable=False),  # arrival minus the head start of its priority: routine work ages
    Column("ready_at", Double, nullable=False),  # not claimed before
    Column("attempt", Integer, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", Double),
    Column("failures", Integer, nullable=False, server_default="0"),  # attempts that failed; a restart is no failure
    Column("tried_from", Double),  # patience counts from the first attempt, or from the first after a retry by hand
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),  # of the latest attempt; or when its series was complete, if that was later
    Column("finished_at", Double),
    Column("error_code", Text),
    Column("error", Text),
    Column(
        "may_lack", Integer, nullable=False, server_default="0"
    ),  # 1: a person lets it replace what is more complete
    one_of("mode", (Mode.ON, Mode.SHADOW)),
    one_of("state", JobState),
    CheckConstraint(f"({is_(JobState.RUNNING)}) = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint(f"({among('state', states.OVER)}) = (finished_at IS NOT NULL)", name="finished"),
    ForeignKeyConstraint(["study_uid", "series_uid"], ["series.study_uid", "series.series_uid"]),
    Index(
        "uq_job_live",
        "study_uid",
        "series_uid",
        "bundle",
        unique=True,
        **where(among("state", states.LIVE)),
    ),
    Index(
        "uq_job_live_study",
        "study_uid",
        "bundle",
        unique=True,
        **where(f"series_uid IS NULL AND {among('state', states.LIVE)}"),
    ),
    Index("ix_job_claimable", "due", "id", **where(among("state", states.CLAIMABLE))),
    Index("ix_job_study_uid", "study_uid", "series_uid"),
    **NEVER_AGAIN,
)

job_channel = Table(
    "job_channel",
    metadata,
    Column("job_id", Integer, ForeignKey("job.id"), primary_key=True),
    Column("place", Integer, primary_key=True),  # in the order of the bundle's channels, from 1 on
    Column("name", Text, nullable=False),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text, nullable=False),
    Column("revision", Integer, nullable=False),  # of the series, that the job is for
    Column("volume", Integer, nullable=False),  # which of the series, from 1 on
    ForeignKeyConstraint(["study_uid", "series_uid"], ["series.study_uid", "series.series_uid"]),
    Index("ix_job_channel_study_uid", "study_uid", "series_uid"),
)

gathering = Table(
    "gathering",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("bundle", Text, primary_key=True),  # as its rule names it
    Column("since_at", Double, nullable=False),  # when the first series that its rule takes was complete
    Column("due_at", Double),  # when the study is looked at; none before another series is complete
    Column("asked", Integer, nullable=False),
    Column("whole", Integer, nullable=False),  # 1: all of the study is known to be here
    Column("said", Text, nullable=False, server_default="{}"),  # JSON: what a person said of its channels
    Column("code", Text),  # of what is missing, as of the last look
    Column("why", Text),
    Index("ix_gathering_due_at", "due_at", **where("due_at IS NOT NULL")),
)

unanswered = Table(
    "unanswered",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("rule", Text, primary_key=True),
    Column("terms", Text, nullable=False),  # JSON: what the rule said then
    Column("bundles", Text, nullable=False),  # JSON: its bundles of which something ended
    Column("asked", Integer, nullable=False),
)

result = Table(
    "result",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), unique=True),  # none of a reason, or a withdrawal
    Column("result_key", Text, nullable=False, unique=True),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text),  # none where it is of several, as its job
    Column("bundle", Text, nullable=False),
    Column("bundle_version", Text, nullable=False),
    Column("predecessor_id", Integer, ForeignKey("result.id"), unique=True),
    Column("facts", Text, nullable=False),  # JSON: volumes, flags, timings
    Column("sources", Text, nullable=False, server_default="[]"),  # JSON: what each stack was made of
    Column("created_at", Double, nullable=False),
    Column("kind", Text, nullable=False, server_default=ResultKind.SEGMENTED.value),
    Column("rule", Text),  # of a reason: by which nothing was segmented
    Column("replaced_at", Double),  # of a reason: when a result, or another reason, took its place
    one_of("kind", ResultKind),
    CheckConstraint("predecessor_id <> id", name="predecessor"),
    CheckConstraint("(kind = 'segmented') = (job_id IS NOT NULL)", name="job"),
    CheckConstraint("(kind = 'reason') = (rule IS NOT NULL)", name="rule"),
    CheckConstraint("replaced_at IS NULL OR kind = 'reason'", name="replaced"),
    Index(
        "uq_result_first",
        "study_uid",
        "series_uid",
        "bundle",
        unique=True,
        **where("predecessor_id IS NULL"),
    ),
    Index(
        "uq_result_first_study",
        "study_uid",
        "bundle",
        unique=True,
        **where("series_uid IS NULL AND predecessor_id IS NULL AND kind <> 'reason'"),
    ),
    Index("uq_result_reason", "study_uid", "rule", unique=True, **where("kind = 'reason' AND replaced_at IS NULL")),
    Index("ix_result_study_uid", "study_uid", "series_uid"),
)

result_object = Table(
    "result_object",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("result_id", Integer, ForeignKey("result.id"), nullable=False),
    Column("kind", Text, nullable=False),  # seg, sr, sc, ...
    Column("sop_class_uid", Text, nullable=False),
    Column("sop_instance_uid", Text, nullable=False, unique=True),
    Column("path", Text, nullable=False, unique=True),  # relative to the spool; its bytes are frozen
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    UniqueConstraint("result_id", "kind"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("object_id", Integer, ForeignKey("result_object.id"), nullable=False),
    Column("destination", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("ready_at", Double, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("lease_owner", Text),
    Column("lease_until", Double),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("tried_from", Double),  # patience counts from the first attempt, or from the first after a retry by hand
    Column("created_at", Double, nullable=False),
    Column("stored_at", Double),
    Column("asked", Integer, nullable=False, server_default="0"),  # times, whether the peer has what it stored
    Column("transaction_uid", Text),  # of the storage commitment asked for last
    Column("confirmed_at", Double),
    Column("status", Integer),  # of the last C-STORE response
    Column("copies", Integer, nullable=False, server_default="0"),  # times that the destination said it stored it
    Column("stored_as", Text),  # the SOP Instance UID that it gave it, where it said so
    Column("error_code", Text),
    Column("error", Text),
    one_of("state", DeliveryState),
    CheckConstraint(f"({is_(DeliveryState.SENDING)}) = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint(f"{among('state NOT', states.STORED)} OR stored_at IS NOT NULL", name="stored"),
    CheckConstraint(f"({is_(DeliveryState.CONFIRMED)}) = (confirmed_at IS NOT NULL)", name="confirmed"),
    UniqueConstraint("object_id", "destination"),
    Index("ix_delivery_claimable", "destination", "ready_at", "id", **where(among("state", states.UNSENT))),
    Index("ix_delivery_unconfirmed", "destination", "ready_at", "id", **where(is_(DeliveryState.STORED))),
    **NEVER_AGAIN,
)

event = Table(
    "event",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("study_uid", Text),
    Column("series_uid", Text),
    Column("sop_instance_uid", Text),
    Column("job_id", Integer, ForeignKey("job.id")),
    Column("detail", Text, nullable=False),  # JSON
    Index("ix_event_study_uid", "study_uid", "at"),
    Index("ix_event_job_id", "job_id"),
)

doomed = Table(
    "doomed",
    metadata,
    Column("path", Text, primary_key=True),  # relative to the spool; with a last slash: a folder
    Column("at", Double, nullable=False),
)

tally = Table(
    "tally",
    metadata,
    Column("name", Text, primary_key=True),
    Column("labels", Text, primary_key=True),  # JSON, in the order of their declaration
    Column("value", Double, nullable=False),
)


def of_series(table: Table, study_uid: str, series_uid: str | None) -> ColumnElement[bool]:
    """The rows of a series in a table that names both UIDs; of the whole study for None."""
    study = table.c.study_uid == study_uid
    return study if series_uid is None else and_(study, table.c.series_uid == series_uid)


def of_job(table: Table, study_uid: str, series_uid: str | None) -> ColumnElement[bool]:
    """The jobs, or results, of a series; of the study as a whole for None: those of its channels."""
    of = table.c.series_uid.is_(None) if series_uid is None else table.c.series_uid == series_uid
    return and_(table.c.study_uid == study_uid, of)


def has_file() -> ColumnElement[bool]:
    """The instances whose files are in the spool."""
    return and_(instance.c.state != InstanceState.MISSING, instance.c.deleted_at.is_(None))
