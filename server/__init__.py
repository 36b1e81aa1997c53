"""The MRM data service: everything that knows gRPC or the business."""
