//! What the shop sells. The storefront shows it, checkout prices it.

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize)]
pub(super) struct Product {
    pub(super) id: u32,
    pub(super) name: &'static str,
    pub(super) cents: u32,
}

pub(super) const PRODUCTS: &[Product] = &[
    Product { id: 1, name: "kettle", cents: 3_900 },
    Product { id: 2, name: "teapot", cents: 2_450 },
    Product { id: 3, name: "cup", cents: 700 },
    Product { id: 4, name: "tea", cents: 480 },
];

/// So many of one product: the body of `POST /cart`, `/buy` and `/orders`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Item {
    pub(super) product: u32,
    /// From 1 to [`Item::MAX_QUANTITY`].
    pub(super) quantity: u32,
}

impl Item {
    const MAX_QUANTITY: u32 = 100;

    /// The price of the whole item in cents, or why there is none.
    pub(super) fn cents(&self) -> Result<u32, String> {
        let product = product(self.product)
            .ok_or_else(|| format!("no product {}; GET / lists them", self.product))?;
        if (1..=Self::MAX_QUANTITY).contains(&self.quantity) {
            Ok(product.cents * self.quantity)
        } else {
            Err(format!("quantity {} is not from 1 to {}", self.quantity, Self::MAX_QUANTITY))
        }
    }
}

pub(super) fn product(id: u32) -> Option<&'static Product> {
    PRODUCTS.iter().find(|product| product.id == id)
}
