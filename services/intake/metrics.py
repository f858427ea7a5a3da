"""What an operator sees of intake at `/metrics`."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

ACCEPTED = Counter("paidan_intake_accepted_total", "Requests answered with 201, repeats included", ["district"])
REFUSED = Counter("paidan_intake_refused_total", "Calls answered with a problem", ["code"])
SECONDS = Histogram(
    "paidan_intake_submit_seconds",
    "From the body's arrival to the answer",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
GROUP = Histogram(
    "paidan_intake_group_size",
    "Submissions that shared one commit",
    ["stream"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
MALFORMED = Counter(
    "paidan_intake_malformed_total", "Messages on the bus that intake follows and could not read", ["code"]
)
SWEPT = Counter("paidan_intake_swept_total", "Messages deleted from SEALED because no fact came after them", ["kind"])
DISCLOSED = Counter("paidan_intake_disclosed_total", "Answers that opened what a resident had sealed", ["why"])
ERASED = Counter("paidan_intake_erased_total", "Requests of which what was sealed has been erased", ["reason"])
