create table orders (
    id uuid primary key,
    customer text not null,
    currency text not null,
    goods numeric not null,
    shipping numeric not null,
    placed_at timestamptz not null default now(),
    booked boolean not null default false
);
create index on orders (customer, placed_at);

create table order_lines (
    order_id uuid not null references orders,
    product text not null,
    quantity integer not null,
    primary key (order_id, product)
);

insert into orders (id, customer, currency, goods, shipping)
select gen_random_uuid(), 'user-' || number, 'EUR', 17.98, 8.99 from generate_series(0, 999) as number;
insert into order_lines select id, '6E92ZMYYFZ', 2 from orders;
