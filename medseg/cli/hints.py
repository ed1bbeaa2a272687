"""What the command line offers against an error: its options, by the error's code. Errors themselves name no option,
since the gateway tells them, too, and has settings in their place.
"""

from __future__ import annotations

HINTS = {
    "ambiguous_bundle": "choose one with --bundle",
    "channel_other_frame": "--assume-registered takes them as they lie",
    "channel_twice": "name them with --channel NAME=UID",
    "channels_missing": "name one with --channel NAME=UID",
    "foreign_checkpoint": "start anew without --resume",
    "incomplete": "without --strict what is here is segmented, and the report tells of the rest",
    "no_device": "use --device auto or cpu",
    "no_frame_of_reference": "--assume-frame-of-reference derives one from the SeriesInstanceUID",
    "may_overlap": "ask for --format seg",
    "no_study": "ask for --format nifti or png",
    "other_layout": "choose another folder with -o, or that --layout",
    "other_output": "choose another folder with -o, or, of the same version, replace it with --overwrite",
    "output_exists": "choose another folder with -o, or replace it with --overwrite",
    "training_stopped": "go on with --resume",
    "unchecked_precision": "use --precision fp32",
    "wrong_start": "--start FILE gives those that the plan names",
}


def with_hint(text: str, code: str) -> str:
    """A sentence, and what may be done about what it says by an option."""
    return f"{text}: {HINTS[code]}" if code in HINTS else text
