"""What every call passes through: context, deadline, auth, limits, rights, validation, idempotency, errors, drain."""
