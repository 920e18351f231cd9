"""Adapters on disk: the base that a stage's adapters belong to, and files of PEFT."""
