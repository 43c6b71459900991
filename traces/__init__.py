"""Which token went where: routing traces, their formats, statistics and synthesis."""
