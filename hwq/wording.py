"""Errors in the words of the shell: what a sentence says of Python's arguments, said of the options that were typed."""

from __future__ import annotations

import re

_NUMBER = r"([0-9][0-9.e+-]*)"
# As errors have it, as regular expressions, and how the shell says it.
ROWS = (
    (r"^shapes\[('[^']*')\] is", r"--shape of \1 is"),
    (r"^shapes names", "--shape names"),
    (r"shapes=\{'([^']*)': \(\.\.\.\)\}", r"--shape \1=..."),
    (r"hwq\.load with that axis ([0-9]+) long \(shapes=, of a torch module example_inputs\)", r"--shape with \1 there"),
    (r"dynamic=\{'([^']*)': \{([0-9]+): \(least, most\)\}\}", r"--dynamic \1:\2=LEAST..MOST"),
    (r"^cache is", "--decoder is"),
    (r"^(calibration|evaluate) is given for", r"--\1 is given for"),
    (r"(?<=accepted: )(calibration|evaluate) for hwq\.plan of .*", r"--\1 for `hwq plan`, then --decoder and --plan"),
    (r"^--calibration\b|(?<=accepted: )--calibration\b", "--calib"),
    (r"^--evaluate\b|(?<=accepted: )--evaluate\b|^evaluate\b|(?<=accepted: )evaluate\b(?=,|=)", "--eval"),
    (r"--eval=\(inputs, labels\), or a function$", "--eval for an output of (N, classes), or no --max-drop"),
    (r"(?<=--eval, or )calibration samples$", "--calib"),
    (r", or a function of a run callable for any other$", ""),
    (r"(?<=accepted: )no evaluate$", "no --eval"),
    (r"(?<=, or )schemes=\['f32'\]$", "--schemes f32"),
    (r"^schemes is empty", "--schemes is empty"),
    (r"^(trials|points|measure) is", r"--\1 is"),
    (r"(?<=accepted: 0, or )measure$", "--measure"),
    (r"(?<=accepted: )no measure(?=, or)", "--no-measure"),
    (r"^sensitivity_s is", "--sensitivity-time is"),
    (rf"^budget latency_s is {_NUMBER}", r"--max-latency is \1 s"),
    (rf"^budget weight_bytes is {_NUMBER}", r"--max-size is \1 bytes"),
    (rf"\blatency_s {_NUMBER}", r"--max-latency \1 s"),
    (rf"\bweight_bytes {_NUMBER}", r"--max-size \1 bytes"),
    (r", or None for no bound$", ""),
    (r"as target= or --target$", "as --target"),
    (r"\(device=, --device\)(, .*)\(target='host'\)$", r"(--device)\1(--target host)"),
    (r", reset\(\), or hwq\.decoder with a greater length$", ""),
    (r"a plan made by hwq\.plan with calibration samples$", "a plan made by `hwq plan` with --calib"),
)


def in_options(sentence: str) -> str:
    """An error's ``sentence`` as the shell says it; of a job's file as it is, whose keys are no options."""
    if sentence.startswith("job file "):
        return sentence
    for pattern, words in ROWS:
        sentence = re.sub(pattern, words, sentence)
    return sentence
