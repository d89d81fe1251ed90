"""gRPC: health that servers tell, and policies around the calls that they serve and make."""
