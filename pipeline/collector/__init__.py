"""The collector: usage comes in by HTTP, in the forms that gateways and SDKs send."""
