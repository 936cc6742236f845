"""Numbers: accuracy, latency, memory and cost, with the statistics behind the verdicts."""
