"""SafetyBench as tasks of lm-eval: a group for each language and protocol, whose members are the categories."""
