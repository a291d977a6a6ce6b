"""The typed search attributes by which people find an order in Temporal."""

from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from everycent.domain.order import OrderStatus, PlaceOrder

TENANT = SearchAttributeKey.for_keyword("EverycentTenant")
ORDER = SearchAttributeKey.for_keyword("EverycentOrder")
CUSTOMER = SearchAttributeKey.for_keyword("EverycentCustomer")
STATUS = SearchAttributeKey.for_keyword("EverycentStatus")
WAITS_FOR = SearchAttributeKey.for_keyword("EverycentWaitsFor")
AMOUNT_MINOR = SearchAttributeKey.for_int("EverycentAmountMinor")
SKUS = SearchAttributeKey.for_keyword_list("EverycentSkus")

SKU_BYTES = 1900  # The server holds at most 2,048 bytes per value.


def of_order(order: PlaceOrder) -> TypedSearchAttributes:
    """Return by what an order can be found when its run begins."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(TENANT, order.tenant),
            SearchAttributePair(ORDER, order.order_id),
            SearchAttributePair(CUSTOMER, order.customer),
            SearchAttributePair(STATUS, OrderStatus.PENDING.value),
            SearchAttributePair(AMOUNT_MINOR, order.total_minor),
            SearchAttributePair(SKUS, skus_that_fit([line.sku for line in order.lines])),
        ]
    )


def skus_that_fit(skus: list[str]) -> list[str]:
    """Return as many of the SKUs, in their order and each once, as a search attribute holds."""
    fitting: list[str] = []
    used = 0
    for sku in dict.fromkeys(skus):
        used += len(sku.encode()) + 3  # Quotes and a comma.
        if used > SKU_BYTES:
            break
        fitting.append(sku)
    return fitting
