"""What policies and pools count, as OpenTelemetry metrics; where no SDK is set up, nobody hears of it."""
