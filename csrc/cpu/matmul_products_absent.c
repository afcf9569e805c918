#include "cpu/definition.h"

/* No library is linked: there are no products by one. */
void LOOM_DEFINITION(install_products)(loom_ops *ops) {
    (void)ops;
}
