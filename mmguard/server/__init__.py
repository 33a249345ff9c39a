"""The sidecar: an OpenAI-compatible guard in front of any model server."""
