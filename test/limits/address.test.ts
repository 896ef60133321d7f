/** Addresses: their one spelling, the networks that they are in, and what is counted as one client. */
import { describe, expect, it } from 'vitest';
import { canonical, countedAs, createAdmittance, Networks } from '../../src/limits/address.ts';

describe('the spelling of an address', () => {
  it.each([
    ['192.0.2.1', '192.0.2.1'],
    ['::ffff:192.0.2.1', '192.0.2.1'],
    ['::FFFF:C000:0201', '192.0.2.1'],
    ['0:0:0:0:0:ffff:192.0.2.1', '192.0.2.1'],
    ['2001:0DB8:0:0:0:0:0:1', '2001:db8::1'],
    ['fe80::1%eth0', 'fe80::1'],
    ['', ''],
  ])('of %s is %s', (written, spelled) => {
    expect(canonical(written)).toBe(spelled);
  });
});

describe('networks', () => {
  const networks = new Networks([
    '10.0.0.0/8',
    '192.0.2.7',
    '2001:db8::/32',
    '::ffff:172.16.0.0/108',
  ]);

  it.each([
    ['10.255.255.255', true],
    ['11.0.0.0', false],
    ['192.0.2.7', true],
    ['192.0.2.8', false],
    ['172.31.255.255', true],
    ['172.32.0.0', false],
    ['2001:db8:ffff::1', true],
    ['2001:db9::1', false],
    ['', false],
  ])('have %s: %s', (address, expected) => {
    expect(networks.has(address)).toBe(expected);
  });

  it('that are all of IPv6 have no IPv4 address, and the other way round', () => {
    expect(new Networks(['::/0']).has('192.0.2.1')).toBe(false);
    expect(new Networks(['::/0']).has('2001:db8::1')).toBe(true);
    expect(new Networks(['0.0.0.0/0']).has('2001:db8::1')).toBe(false);
  });

  it('deny an IPv4 client whose address a listener on :: writes as IPv6', () => {
    const mayConnect = createAdmittance({ deny: ['192.0.2.0/24'] });

    expect(mayConnect(canonical('::ffff:192.0.2.1'))).toBe(false);
    expect(mayConnect(canonical('::ffff:192.0.3.1'))).toBe(true);
  });

  it('that are allowed leave out those that are denied', () => {
    const mayConnect = createAdmittance({ allow: ['10.0.0.0/8'], deny: ['10.1.0.0/16'] });

    expect(['10.0.0.1', '10.1.0.1', '11.0.0.1', '::1', ''].map(mayConnect)).toEqual([
      true,
      false,
      false,
      false,
      false,
    ]);
  });
});

describe('what counts as one client', () => {
  it.each([
    ['192.0.2.1', 64, '192.0.2.1'],
    ['2001:db8:1:2:3:4:5:6', 64, '2001:db8:1:2::/64'],
    ['2001:db8:1:2::', 64, '2001:db8:1:2::/64'],
    ['2001:db8::1', 64, '2001:db8::/64'],
    ['2001:db8:1:2ff:3:4:5:6', 56, '2001:db8:1:200::/56'],
    ['::1', 128, '::1/128'],
    ['::1', 64, '::/64'],
    ['2001:db8:ffff::1', 33, '2001:db8:8000::/33'],
  ])('%s by %i bits is %s', (address, bits, counted) => {
    expect(countedAs(address, bits)).toBe(counted);
  });
});
