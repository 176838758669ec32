"""Start an engine so that it can be checkpointed later."""
