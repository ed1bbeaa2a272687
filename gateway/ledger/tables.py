"""The ledger's tables: everything the gateway knows that must outlive a power cut. Their rules stand in them.

    association 1──n instance n──1 series 1──n job 1──1 result 1──n result_object 1──n delivery    event  doomed
    commitment 1──n commitment_item    count    refusal    tally    study_patient    patient_conflict

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
- Of the results of one series and bundle exactly one is current: the one that no other names as its predecessor.
- A delivery is one object for one destination. What is stored there and not confirmed is looked after at `ready_at`.
- A doomed file is one that no row names any more, and that is still to be deleted.
- A commitment is what a sender asked us to be responsible for (PS3.4 Annex J); once all its items are known, the sender
  is told.
- A count is what a peer answered last when it was asked how many instances a series has, or a study.
- A refusal is what was not taken from one peer, counted: instances, associations, connections that asked for none.
- A tally is one counter of `gateway.ledger.tallies`: it only grows, in the transaction of what it counts.
- The ids of jobs, deliveries and commitments are never given again: a claim, or the last list that was heard, may
  outlive its row.

Times are seconds since 1970, UTC. UIDs are text as received. Booleans, enums and JSON are text or integers with checks,
so that SQLite and PostgreSQL read the same.
"""

from __future__ import annotations

from typing import Any

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
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    and_,
)

from gateway.ledger import states
from gateway.ledger.conditions import among, is_, one_of, where
from gateway.ledger.states import (
    CommitmentState,
    ConflictState,
    DeliveryState,
    Ending,
    InstanceState,
    JobState,
    RefusedCaller,
    SeriesState,
)
from gateway.settings.model import Mode

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


DEFERRED: dict[str, Any] = {"deferrable": True, "initially": "DEFERRED"}
NEVER_AGAIN: dict[str, Any] = {"sqlite_autoincrement": True}  # SQLite gives the id of a deleted newest row again

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
    Column("series_uid", Text, nullable=False),
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
    Index("ix_job_claimable", "due", "id", **where(among("state", states.CLAIMABLE))),
    Index("ix_job_study_uid", "study_uid", "series_uid"),
    **NEVER_AGAIN,
)

result = Table(
    "result",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("job_id", Integer, ForeignKey("job.id"), nullable=False, unique=True),
    Column("result_key", Text, nullable=False, unique=True),
    Column("study_uid", Text, nullable=False),
    Column("series_uid", Text, nullable=False),
    Column("bundle", Text, nullable=False),
    Column("bundle_version", Text, nullable=False),
    Column("predecessor_id", Integer, ForeignKey("result.id"), unique=True),
    Column("facts", Text, nullable=False),  # JSON: volumes, flags, timings
    Column("sources", Text, nullable=False, server_default="[]"),  # JSON: what each stack was made of
    Column("created_at", Double, nullable=False),
    CheckConstraint("predecessor_id <> id", name="predecessor"),
    Index(
        "uq_result_first",
        "study_uid",
        "series_uid",
        "bundle",
        unique=True,
        **where("predecessor_id IS NULL"),
    ),
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

commitment = Table(
    "commitment",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("transaction_uid", Text, nullable=False),
    Column("calling_ae", Text, nullable=False),
    Column("association_id", Text, nullable=False),  # on which it was asked for
    Column("asked_at", Double, nullable=False),
    Column("state", Text, nullable=False),
    Column("known_at", Double),
    Column("ready_at", Double, nullable=False),  # not reported before
    Column("attempt", Integer, nullable=False),
    Column("reported_at", Double),
    Column("error", Text),
    one_of("state", CommitmentState),
    CheckConstraint(f"({is_(CommitmentState.WAITING)}) = (known_at IS NULL)", name="known"),
    CheckConstraint(f"({is_(CommitmentState.REPORTED)}) = (reported_at IS NOT NULL)", name="reported"),
    UniqueConstraint("calling_ae", "transaction_uid"),
    Index("ix_commitment_open", "ready_at", **where(among("state", states.UNREPORTED))),
    **NEVER_AGAIN,
)

commitment_item = Table(
    "commitment_item",
    metadata,
    Column("commitment_id", Integer, ForeignKey("commitment.id"), primary_key=True),
    Column("sop_instance_uid", Text, primary_key=True),
    Column("sop_class_uid", Text, nullable=False),
    Column("reason", Integer),  # Failure Reason (0008,1197); none where it is stored, or not known yet
    Index("ix_commitment_item_sop_instance_uid", "sop_instance_uid"),
)

count = Table(
    "count",
    metadata,
    Column("study_uid", Text, primary_key=True),
    Column("series_uid", Text, primary_key=True),  # empty for the study as a whole
    Column("source", Text, primary_key=True),  # the peer
    Column("value", Integer, nullable=False),
    Column("since_at", Double, nullable=False),  # when it first gave this answer
    Column("at", Double, nullable=False),  # when it last did
    CheckConstraint("value >= 0", name="value"),
)

doomed = Table(
    "doomed",
    metadata,
    Column("path", Text, primary_key=True),  # relative to the spool; with a last slash: a folder
    Column("at", Double, nullable=False),
)

refusal = Table(
    "refusal",
    metadata,
    Column("what", Text, primary_key=True),
    Column("calling_ae", Text, primary_key=True),  # empty where nobody said
    Column("host", Text, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("first_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("reason", Text, nullable=False),  # of the last
    Column("sop_instance_uid", Text),  # of the last
    one_of("what", RefusedCaller),
    CheckConstraint("count > 0", name="count"),
    Index("ix_refusal_last_at", "last_at"),
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


def has_file() -> ColumnElement[bool]:
    """The instances whose files are in the spool."""
    return and_(instance.c.state != InstanceState.MISSING, instance.c.deleted_at.is_(None))
