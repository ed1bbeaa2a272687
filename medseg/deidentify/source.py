"""A stack as it may be told of: the same planes, under headers without who they are of.

Segmenting, and reading pixels, goes by the headers as they were; what writes results is given these, so that nothing
of a patient gets there to be forgotten.
"""

from __future__ import annotations

import re
from dataclasses import replace

from pydicom.dataset import FileMetaDataset

from medseg.deidentify.burned_in import burned_in
from medseg.deidentify.dataset import deidentified
from medseg.deidentify.pseudonyms import Person, Pseudonyms
from medseg.deidentify.words import Words
from medseg.dicom.headers import transfer_syntax
from medseg.dicom.instance import Instance
from medseg.dicom.series import ChannelImage, Series, Stack

_DAY_IN_PHASE = re.compile(r"(?<=Date)(\w*=)(\d{8})(?!\d{7})")


def without_identity(stack: Stack, pseudonyms: Pseudonyms) -> Stack:
    """A stack, and those of its channels, without who they are of."""
    return _Source(stack, pseudonyms).stack(stack)


def person_of(stack: Stack, pseudonyms: Pseudonyms) -> Person | None:
    """Whose a stack is; None for one of NIfTI, which does not say."""
    instances = instances_of(stack)
    return pseudonyms.person(instances[0].header) if instances else None


def instances_of(stack: Stack) -> list[Instance]:
    """The instances of a stack and of its channels, each once."""
    stacks = [stack, *(channel.stack for channel in stack.channels if channel.stack is not None)]
    found = (part.instance for one in stacks for part in one.slices if part.instance is not None)
    return list({id(instance): instance for instance in found}.values())


def series_without_identity(series: Series, pseudonyms: Pseudonyms) -> Series:
    """What a series is, and none of its images."""
    return replace(
        series,
        study_uid=pseudonyms.uid(series.study_uid),
        series_uid=pseudonyms.uid(series.series_uid),
        description="",
        instances=(),
        left_out=(),
    )


def words_about(series: Series, pseudonyms: Pseudonyms) -> Words:
    """Sentences about a series that do not say what its headers do."""
    return Words.about(pseudonyms, series.instances[0].header) if series.instances else Words(pseudonyms)


def burned_in_of(stack: Stack) -> str | None:
    """As `burned_in`, of all that a stack is made of."""
    return burned_in(instances_of(stack))


class _Source:
    def __init__(self, stack: Stack, pseudonyms: Pseudonyms) -> None:
        instances = instances_of(stack)
        self._pseudonyms, self._person = pseudonyms, person_of(stack, pseudonyms)
        self._words = words_about(stack.series, pseudonyms)
        self._changed = {id(one): self._instance(one) for one in instances}

    def stack(self, stack: Stack) -> Stack:
        return replace(
            stack,
            series=series_without_identity(stack.series, self._pseudonyms),
            slices=tuple(
                part if part.instance is None else replace(part, instance=self._changed[id(part.instance)])
                for part in stack.slices
            ),
            frame_of_reference_uid=self._pseudonyms.uid(stack.frame_of_reference_uid),
            phase=self._phase(stack.phase),
            findings=tuple(replace(one, detail=self._words.told(one.detail)) for one in stack.findings),
            left_out=tuple(replace(one, why=self._words.told(one.why)) for one in stack.left_out),
            channels=tuple(map(self._channel, stack.channels)),
        )

    def _channel(self, channel: ChannelImage) -> ChannelImage:
        if channel.stack is None:
            return channel
        return replace(channel, stack=self.stack(replace(channel.stack, channels=())))

    def _instance(self, instance: Instance) -> Instance:
        assert self._person is not None
        header = deidentified(instance.header, self._person)
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = transfer_syntax(instance.header)
        return replace(instance, header=header, name=str(header.SOPInstanceUID))

    def _phase(self, phase: str) -> str:
        """What tells a volume from others of its series, its dates moved."""
        person = self._person
        if person is None:
            return phase
        return _DAY_IN_PHASE.sub(lambda match: match[1] + person.date(match[2]), self._words.told(phase))
