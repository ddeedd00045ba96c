"""Why a model does badly, is slow, or does not fit: checks that look, and changes that are tried."""
