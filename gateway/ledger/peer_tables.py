"""The ledger's tables of what peers said, and of what was not taken from them (`gateway.ledger.tables` has the others).

    commitment 1──n commitment_item    count    refusal

- A commitment is what a sender asked us to be responsible for (PS3.4 Annex J); once all its items are known, the sender
  is told.
- A count is what a peer answered last when it was asked how many instances a series has, or a study.
- A refusal is what was not taken from one peer, counted: instances, associations, connections that asked for none.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Double, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from gateway.ledger import states
from gateway.ledger.conditions import among, is_, one_of, where
from gateway.ledger.metadata import NEVER_AGAIN, metadata
from gateway.ledger.states import CommitmentState, RefusedCaller

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
