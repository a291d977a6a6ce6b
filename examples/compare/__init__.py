"""The same coupon, three times: TCC by hand, TCC on the platform, and a step of a saga."""
